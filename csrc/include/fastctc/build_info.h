// What this library was built from and for.
#pragma once

namespace fastctc {

// Every member is a zero-terminated string in static memory, empty where nothing applies.
struct BuildInfo {
  const char* version;       // base version, without a local tag
  const char* compiler;      // name and version of the C++ compiler
  const char* build_type;    // Release, RelWithDebInfo or Debug
  const char* platform;      // operating system and processor
  const char* cpu_targets;   // comma-separated, widest first
  const char* sanitizers;    // comma-separated
  const char* cuda_version;  // of the toolkit, e.g. 13.0; empty without the CUDA library
  const char* cuda_archs;    // comma-separated, e.g. 80,90,120,120+PTX
};

const BuildInfo& build_info() noexcept;

}  // namespace fastctc
