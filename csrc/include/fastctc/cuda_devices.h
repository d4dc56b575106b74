// The CUDA devices of this machine. Every function may be called on a machine without a driver.
// The first call initialises the driver, so a process that means to fork should call none before.
#pragma once

#include <cstdint>

namespace fastctc {

struct CudaDevice {
  char name[256];  // zero-terminated
  int major;       // compute capability
  int minor;
  int multiprocessors;
  std::int64_t memory;  // total, in bytes
};

// Number of devices; 0 when there is no driver, or when it is older than the runtime needs.
int cuda_device_count() noexcept;

// Fills *device (host memory) with what is known of device `index`. Returns false, and leaves
// *device as it was, when there is no such device.
bool cuda_device(int index, CudaDevice* device) noexcept;

// Newest CUDA version that the installed driver serves, as 1000 * major + 10 * minor; 0 without one.
int cuda_driver_version() noexcept;

}  // namespace fastctc
