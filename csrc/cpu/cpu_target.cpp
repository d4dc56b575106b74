#include "cpu_target.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "fastctc/cpu_target.h"

#if defined(__GNUC__) && defined(__x86_64__)
#include <cpuid.h>
#endif

namespace fastctc {
namespace {

struct Target {
  const char* name;
  bool (*runs_here)();
  const CtcLossKernels* ctc_loss;
  const ForcedAlignKernels* forced_align;
  const NormKernels* spectrogram_norm;
  const BeamKernels* beam;
};

#if defined(__GNUC__) && defined(__x86_64__)
// every instruction set that the file is compiled for: a hypervisor may hide any of them
bool runs_avx2() {
  unsigned a, b, c, d;
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c;
}
#endif

// best first
const Target kTargets[] = {
#if defined(__GNUC__) && defined(__x86_64__)
    {"avx512",
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && runs_avx2();
     },
     &ctc_loss_kernels_avx512, &forced_align_kernels_avx512, &spectrogram_norm_kernels_avx512, &beam_kernels_avx512},
    {"avx2", runs_avx2, &ctc_loss_kernels_avx2, &forced_align_kernels_avx2, &spectrogram_norm_kernels_avx2,
     &beam_kernels_avx2},
#endif
#if defined(__GNUC__)
    {"vec128", [] { return true; }, &ctc_loss_kernels_vec128, &forced_align_kernels_vec128,
     &spectrogram_norm_kernels_vec128, &beam_kernels_vec128},
#endif
    {"portable", [] { return true; }, &ctc_loss_kernels_portable, &forced_align_kernels_portable,
     &spectrogram_norm_kernels_portable, &beam_kernels_portable},
};

std::atomic<const Target*> in_use{nullptr};

const Target* find(const std::string& name) {
  std::string choices = "auto";
  for (const Target& target : kTargets) {
    if (!target.runs_here()) continue;
    if (name == "auto" || name == target.name) return &target;
    choices += std::string(", ") + target.name;
  }
  throw std::invalid_argument("CPU target '" + name + "' is not one of those this machine runs: " + choices);
}

const Target* current() {
  if (const Target* target = in_use.load()) return target;
  const char* forced = std::getenv("FASTCTC_CPU_TARGET");
  const Target* target = find(forced && *forced ? forced : "auto");
  in_use.store(target);
  return target;
}

}  // namespace

std::vector<std::string> cpu_targets() {
  std::vector<std::string> names;
  for (const Target& target : kTargets)
    if (target.runs_here()) names.emplace_back(target.name);
  return names;
}

std::string cpu_target() { return current()->name; }

void set_cpu_target(const std::string& name) { in_use.store(find(name)); }

const CtcLossKernels& ctc_loss_kernels() { return *current()->ctc_loss; }
const ForcedAlignKernels& forced_align_kernels() { return *current()->forced_align; }
const NormKernels& spectrogram_norm_kernels() { return *current()->spectrogram_norm; }
const BeamKernels& beam_kernels() { return *current()->beam; }

}  // namespace fastctc
