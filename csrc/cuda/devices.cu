#include "fastctc/cuda_devices.h"

#include <cstring>

#include "platform.h"

namespace fastctc {
namespace {

// The runtime keeps the last error until it is read; one left behind would surface later, in
// the check after somebody's launch.
bool succeeded(cudaError_t status) noexcept {
  if (status == cudaSuccess) return true;
  cudaGetLastError();
  return false;
}

}  // namespace

int cuda_device_count() noexcept {
  int count = 0;
  return succeeded(cudaGetDeviceCount(&count)) ? count : 0;
}

bool cuda_device(int index, CudaDevice* device) noexcept {
  cudaDeviceProp properties;
  if (index < 0 || index >= cuda_device_count()) return false;
  if (!succeeded(cudaGetDeviceProperties(&properties, index))) return false;
  std::memcpy(device->name, properties.name, sizeof device->name);
  device->name[sizeof device->name - 1] = '\0';
  device->major = properties.major;
  device->minor = properties.minor;
  device->multiprocessors = properties.multiProcessorCount;
  device->memory = static_cast<std::int64_t>(properties.totalGlobalMem);
  return true;
}

int cuda_driver_version() noexcept {
  int version = 0;
  return succeeded(cudaDriverGetVersion(&version)) ? version : 0;
}

}  // namespace fastctc
