// A SIMT emulator: runs CUDA kernels on the host, one fiber per CUDA thread, so that they can be tested, and watched by
// AddressSanitizer, UBSan and ThreadSanitizer, where no GPU is. csrc/cuda/platform.h includes it in the toolkit's
// place.
//
// Blocks run one after the other. A thread runs until it meets a barrier, a warp-wide operation or an atomic; then the
// order decides who goes on (FASTCTC_SIMT_ORDER: 0 the lowest thread that can, 1 the highest, 2 and above random with
// that seed). What a GPU would leave undefined (a barrier that some threads miss, a lane outside of the mask, threads
// that wait for each other) throws simt::Error, which names the kernel, the block and the thread.
#pragma once

#include <stdexcept>

#include "simt_host.h"
#include "simt_types.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

// Allocated anew for each block and filled with NaN. A reference to an array, so that sizeof is what it is in CUDA.
#define FASTCTC_SHARED(type, name, count)        \
  static const char name##_shared_array_key = 0; \
  type(&name)[count] = ::fastctc::simt::shared_array<type, count>(&name##_shared_array_key)
#define FASTCTC_DYNAMIC_SHARED(name) char* const name = ::fastctc::simt::dynamic_shared()

// Where a thread was when it called, for messages.
#define FASTCTC_SIMT_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace fastctc {
namespace simt {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// How much the fibers of this process did so far: for the emulator's own tests.
struct Counts {
  uint64_t launches, blocks, switches;
};
Counts counts();

enum class BarrierKind { sync, count, any, all };
enum class WarpKind {
  syncwarp,
  shuffle,
  shuffle_up,
  shuffle_down,
  shuffle_xor,
  ballot,
  any,
  all,
  match_any,
  reduce_add,
  reduce_min_signed,
  reduce_max_signed,
  reduce_min_unsigned,
  reduce_max_unsigned,
  reduce_and,
  reduce_or,
  reduce_xor
};
const char* name_of(WarpKind kind);

// The calling fiber waits, and comes back with the result. They never return where the launch has failed.
int block_barrier(BarrierKind kind, int predicate, const char* file, int line);
void named_barrier(int id, int threads, const char* file, int line);
uint64_t warp_operation(WarpKind kind, unsigned mask, uint64_t value, int argument, int width, const char* file,
                        int line);
// Lets other threads run at an atomic operation or a fence; stops threads that only wait for each other in a loop.
void pause();
void thread_fence();

void* shared_memory(const void* key, size_t bytes, size_t alignment);
char* dynamic_shared();

struct AsyncCopy {
  void* shared;
  const void* global;
  size_t bytes;
};
void add_copy(const AsyncCopy& copy, const char* file, int line);
void commit_copies();
// Takes the oldest copy that is not in one of the newest `groups` committed groups.
bool take_copy(int groups, AsyncCopy* copy);

struct Launch {
  const char* call;  // the text of the launch's arguments, the kernel first
  const char* file;
  int line;
  const void* kernel;
  dim3 grid, block;
  size_t shared_bytes;
};
cudaError_t run(const Launch& launch, void (*body)(void*), void* argument);

template <class T, size_t count>
inline T (&shared_array(const void* key)) [count] {
  static_assert(std::is_trivially_default_constructible<T>::value, "shared memory is not constructed");
  return *static_cast<T(*)[count]>(shared_memory(key, count * sizeof(T), alignof(T)));
}

template <class T>
inline uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}
template <class T>
inline T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <class T>
inline T shuffle(WarpKind kind, unsigned mask, T value, int argument, int width, const char* file, int line) {
  static_assert(std::is_arithmetic<T>::value || std::is_same<T, __half>::value || std::is_same<T, __nv_bfloat16>::value,
                "CUDA shuffles numbers only");
  return from_bits<T>(warp_operation(kind, mask, to_bits(value), argument, width, file, line));
}

template <class T>
struct SameType {
  using type = T;
};

template <class... Params>
inline cudaError_t launch_kernel(const char* call, const char* file, int line, void (*kernel)(Params...), dim3 grid,
                                 dim3 block, size_t shared_bytes, cudaStream_t,
                                 typename SameType<Params>::type... args) {
  const auto body = [&] { kernel(args...); };
  const Launch launch{call, file, line, reinterpret_cast<const void*>(kernel), grid, block, shared_bytes};
  return run(
      launch, [](void* pointer) { (*static_cast<decltype(body)*>(pointer))(); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace simt

// A macro, because nothing else knows the kernel's name.
#define launch(...) simt::launch_kernel(#__VA_ARGS__, __FILE__, __LINE__, __VA_ARGS__)

inline void bar_sync(int id, int threads, FASTCTC_SIMT_SITE) { simt::named_barrier(id, threads, file, line); }

// The destination holds NaN until the wait that must come before it is read.
template <int bytes>
inline void copy_async(void* shared, const void* global, const char* file, int line) {
  std::memset(shared, 0xff, bytes);
  simt::add_copy({shared, global, bytes}, file, line);
}
inline void copy_async16(void* shared, const void* global, FASTCTC_SIMT_SITE) {
  copy_async<16>(shared, global, file, line);
}
inline void copy_async8(void* shared, const void* global, FASTCTC_SIMT_SITE) {
  copy_async<8>(shared, global, file, line);
}
inline void copy_async4(void* shared, const void* global, FASTCTC_SIMT_SITE) {
  copy_async<4>(shared, global, file, line);
}
inline void copy_async_commit() { simt::commit_copies(); }
template <int groups>
inline void copy_async_wait() {
  simt::AsyncCopy copy;
  while (simt::take_copy(groups, &copy)) std::memcpy(copy.shared, copy.global, copy.bytes);
}

inline float exp2_approx(float x) { return exp2f(x); }
inline float log2_approx(float x) { return log2f(x); }
inline void prefetch_l2(const void*) {}

}  // namespace fastctc

inline void __syncthreads(FASTCTC_SIMT_SITE) {
  fastctc::simt::block_barrier(fastctc::simt::BarrierKind::sync, 0, file, line);
}
inline int __syncthreads_count(int predicate, FASTCTC_SIMT_SITE) {
  return fastctc::simt::block_barrier(fastctc::simt::BarrierKind::count, predicate, file, line);
}
inline int __syncthreads_or(int predicate, FASTCTC_SIMT_SITE) {
  return fastctc::simt::block_barrier(fastctc::simt::BarrierKind::any, predicate, file, line);
}
inline int __syncthreads_and(int predicate, FASTCTC_SIMT_SITE) {
  return fastctc::simt::block_barrier(fastctc::simt::BarrierKind::all, predicate, file, line);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, FASTCTC_SIMT_SITE) {
  fastctc::simt::warp_operation(fastctc::simt::WarpKind::syncwarp, mask, 0, 0, 32, file, line);
}

template <class T>
inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32, FASTCTC_SIMT_SITE) {
  return fastctc::simt::shuffle(fastctc::simt::WarpKind::shuffle, mask, value, lane, width, file, line);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, FASTCTC_SIMT_SITE) {
  return fastctc::simt::shuffle(fastctc::simt::WarpKind::shuffle_up, mask, value, static_cast<int>(delta), width, file,
                                line);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, FASTCTC_SIMT_SITE) {
  return fastctc::simt::shuffle(fastctc::simt::WarpKind::shuffle_down, mask, value, static_cast<int>(delta), width,
                                file, line);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, FASTCTC_SIMT_SITE) {
  return fastctc::simt::shuffle(fastctc::simt::WarpKind::shuffle_xor, mask, value, lanes, width, file, line);
}

#define FASTCTC_SIMT_VOTE(name, result, kind)                                                                   \
  inline result name(unsigned mask, int predicate, FASTCTC_SIMT_SITE) {                                         \
    return static_cast<result>(                                                                                 \
        fastctc::simt::warp_operation(fastctc::simt::WarpKind::kind, mask, predicate != 0, 0, 32, file, line)); \
  }
FASTCTC_SIMT_VOTE(__ballot_sync, unsigned, ballot)
FASTCTC_SIMT_VOTE(__any_sync, int, any)
FASTCTC_SIMT_VOTE(__all_sync, int, all)
#undef FASTCTC_SIMT_VOTE

template <class T>
inline unsigned __match_any_sync(unsigned mask, T value, FASTCTC_SIMT_SITE) {
  return static_cast<unsigned>(fastctc::simt::warp_operation(fastctc::simt::WarpKind::match_any, mask,
                                                             fastctc::simt::to_bits(value), 0, 32, file, line));
}

#define FASTCTC_SIMT_REDUCE(name, type, kind)                                                    \
  inline type name(unsigned mask, type value, FASTCTC_SIMT_SITE) {                               \
    return fastctc::simt::from_bits<type>(fastctc::simt::warp_operation(                         \
        fastctc::simt::WarpKind::kind, mask, fastctc::simt::to_bits(value), 0, 32, file, line)); \
  }
FASTCTC_SIMT_REDUCE(__reduce_add_sync, int, reduce_add)
FASTCTC_SIMT_REDUCE(__reduce_add_sync, unsigned, reduce_add)
FASTCTC_SIMT_REDUCE(__reduce_min_sync, int, reduce_min_signed)
FASTCTC_SIMT_REDUCE(__reduce_min_sync, unsigned, reduce_min_unsigned)
FASTCTC_SIMT_REDUCE(__reduce_max_sync, int, reduce_max_signed)
FASTCTC_SIMT_REDUCE(__reduce_max_sync, unsigned, reduce_max_unsigned)
FASTCTC_SIMT_REDUCE(__reduce_and_sync, unsigned, reduce_and)
FASTCTC_SIMT_REDUCE(__reduce_or_sync, unsigned, reduce_or)
FASTCTC_SIMT_REDUCE(__reduce_xor_sync, unsigned, reduce_xor)
#undef FASTCTC_SIMT_REDUCE

inline void __threadfence() { fastctc::simt::thread_fence(); }
inline void __threadfence_block() { fastctc::simt::thread_fence(); }
inline void __nanosleep(unsigned) { fastctc::simt::pause(); }

template <class T>
inline T __ldg(const T* pointer) {
  return *pointer;
}
template <class T>
inline T __ldcs(const T* pointer) {
  return *pointer;
}
template <class T>
inline T __ldcg(const T* pointer) {
  return *pointer;
}
template <class T>
inline void __stcs(T* pointer, typename fastctc::simt::SameType<T>::type value) {
  *pointer = value;
}
template <class T>
inline void __stcg(T* pointer, typename fastctc::simt::SameType<T>::type value) {
  *pointer = value;
}

namespace fastctc {
namespace simt {

// Relaxed, as on the device: an atomic orders nothing but itself.
template <class T, class Update>
inline T atomic_update(T* pointer, Update update) {
  using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  static_assert(sizeof(T) == sizeof(Bits), "atomics are of 4 or 8 bytes");
  Bits* const word = reinterpret_cast<Bits*>(pointer);
  pause();
  Bits seen = __atomic_load_n(word, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(word, &seen, bit_cast<Bits>(static_cast<T>(update(bit_cast<T>(seen)))), false,
                                      __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return bit_cast<T>(seen);
}

}  // namespace simt
}  // namespace fastctc

#define FASTCTC_SIMT_ATOMIC(name, expression)                                          \
  template <class T>                                                                   \
  inline T name(T* pointer, typename fastctc::simt::SameType<T>::type value) {         \
    return fastctc::simt::atomic_update(pointer, [=](T old) { return (expression); }); \
  }
FASTCTC_SIMT_ATOMIC(atomicAdd, old + value)
FASTCTC_SIMT_ATOMIC(atomicSub, old - value)
FASTCTC_SIMT_ATOMIC(atomicMin, value < old ? value : old)
FASTCTC_SIMT_ATOMIC(atomicMax, old < value ? value : old)
FASTCTC_SIMT_ATOMIC(atomicAnd, old& value)
FASTCTC_SIMT_ATOMIC(atomicOr, old | value)
FASTCTC_SIMT_ATOMIC(atomicXor, old ^ value)
#undef FASTCTC_SIMT_ATOMIC
template <class T>
inline T atomicExch(T* pointer, typename fastctc::simt::SameType<T>::type value) {
  return fastctc::simt::atomic_update(pointer, [=](T) { return value; });
}
template <class T>
inline T atomicCAS(T* pointer, typename fastctc::simt::SameType<T>::type expected,
                   typename fastctc::simt::SameType<T>::type value) {
  return fastctc::simt::atomic_update(pointer, [=](T old) { return old == expected ? value : old; });
}
