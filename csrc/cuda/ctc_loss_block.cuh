// Reductions over the threads of a block or of a part of a warp. All add in an order that does not depend on timing,
// and give every thread the result.
#pragma once

#include "platform.h"

namespace fastctc {
namespace cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

// Over `lanes` neighbouring lanes, a power of two up to 32. combine is commutative.
template <int lanes, class T, class Combine>
__device__ __forceinline__ T reduce_lanes(T value, Combine combine) {
#pragma unroll
  for (int step = lanes / 2; step > 0; step /= 2) value = combine(value, __shfl_xor_sync(kAllLanes, value, step));
  return value;
}

// Over all threads, whole warps, of the block; `shared` has room for one value per warp and is free afterwards.
template <class T, class Combine>
__device__ __forceinline__ T reduce_block(T value, T* shared, Combine combine) {
  value = reduce_lanes<32>(value, combine);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  value = shared[0];
  for (unsigned warp = 1; warp < blockDim.x / 32; ++warp) value = combine(value, shared[warp]);
  __syncthreads();
  return value;
}

struct Sum {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Largest {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};

}  // namespace cuda
}  // namespace fastctc
