// Which instruction set the host kernels use.
#pragma once

#include <string>
#include <vector>

namespace fastctc {

// Compiled in and runnable on this machine, best first: "avx512", "avx2", "vec128", "portable".
std::vector<std::string> cpu_targets();

// The one in use. The first call honours FASTCTC_CPU_TARGET. Throws std::invalid_argument, naming the choices, where
// that asks for a target this machine or build lacks.
std::string cpu_target();

// A name out of cpu_targets(), or "auto" for the best. Throws std::invalid_argument as above.
void set_cpu_target(const std::string& name);

}  // namespace fastctc
