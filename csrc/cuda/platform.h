// The one header through which kernels see CUDA. nvcc takes the toolkit; with FASTCTC_EMULATE_CUDA a C++ compiler takes
// the emulator of tests/cuda_emulator, which offers the same names, and runs the same kernels on the host.
//
// What a kernel has to write differently from plain CUDA, so that both can compile it:
//   FASTCTC_SHARED(type, name, count)   for  __shared__ type name[count]
//   FASTCTC_DYNAMIC_SHARED(name)        for  extern __shared__ char name[], aligned to 16 bytes
//   fastctc::launch(...)                for  <<<...>>>
// and the functions below instead of inline PTX.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#ifdef FASTCTC_EMULATE_CUDA

#include "simt.h"

#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define FASTCTC_SHARED(type, name, count) __shared__ type name[count]
#define FASTCTC_DYNAMIC_SHARED(name) extern __shared__ __align__(16) char name[]

namespace fastctc {

template <class T>
struct SameType {
  using type = T;
};

// Launches kernel(args...) and returns what the launch returned; an error of the kernel itself comes later, from
// whatever synchronises the stream. The arguments are converted to the kernel's parameter types.
template <class... Params>
cudaError_t launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                   typename SameType<Params>::type... args) {
  // clang-format off: it takes the brackets apart
  kernel<<<grid, block, shared_bytes, stream>>>(args...);
  // clang-format on
  return cudaGetLastError();
}

// Waits for `threads` threads (whole warps) of the block at barrier `id`, 1 to 15; 0 is __syncthreads' own. Orders
// their shared and global memory accesses as __syncthreads does. Threads may arrive from different places in the code.
__device__ __forceinline__ void bar_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" : : "r"(id), "r"(threads) : "memory");
}

// Copies from global to shared memory that may finish only at copy_async_wait; both addresses are multiples of the
// size. Before sm_80 the copy is done at once.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
__device__ __forceinline__ unsigned shared_address(void* shared) {
  return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}
__device__ __forceinline__ void copy_async16(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" : : "r"(shared_address(shared)), "l"(global) : "memory");
}
__device__ __forceinline__ void copy_async8(void* shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" : : "r"(shared_address(shared)), "l"(global) : "memory");
}
__device__ __forceinline__ void copy_async4(void* shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" : : "r"(shared_address(shared)), "l"(global) : "memory");
}
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" : : : "memory"); }
// Waits until at most `groups` of this thread's committed groups, the newest, are still under way. Other threads see
// the data after a barrier of theirs with this thread.
template <int groups>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" : : "n"(groups) : "memory");
}
#else
__device__ __forceinline__ void copy_async16(void* shared, const void* global) {
  *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
}
__device__ __forceinline__ void copy_async8(void* shared, const void* global) {
  *static_cast<uint2*>(shared) = *static_cast<const uint2*>(global);
}
__device__ __forceinline__ void copy_async4(void* shared, const void* global) {
  *static_cast<unsigned*>(shared) = *static_cast<const unsigned*>(global);
}
__device__ __forceinline__ void copy_async_commit() {}
template <int groups>
__device__ __forceinline__ void copy_async_wait() {}
#endif

// 2^x and log2(x) by the special function unit: 2 units in the last place for 2^x, denormals are flushed to zero.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Asks for the 128 bytes round a global address to be brought into the L2 cache.
__device__ __forceinline__ void prefetch_l2(const void* global) {
  asm volatile("prefetch.global.L2 [%0];" : : "l"(global));
}

}  // namespace fastctc

#endif
