// What kernels compute in the emulator, where CUDA says what that has to be.
#include "test_simt.h"

namespace {

constexpr unsigned kAll = 0xffffffffu;

__global__ void write_indices(int* seen, uint3* block, uint3* thread) {
  const unsigned in_block = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const unsigned in_grid = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned i = in_grid * blockDim.x * blockDim.y * blockDim.z + in_block;
  ++seen[i];
  block[i] = blockIdx;
  thread[i] = threadIdx;
}

TEST(indices_of_three_dimensions) {
  for (int order = 0; order < kOrders; ++order) {
    set_order(order);
    const dim3 grid(3, 2, 2), block(5, 3, 4);
    std::vector<int> seen(12 * 60);
    std::vector<uint3> blocks(seen.size()), threads(seen.size());
    EXPECT(fastctc::launch(write_indices, grid, block, 0, nullptr, seen.data(), blocks.data(), threads.data()) == 0);
    for (unsigned i = 0; i < seen.size(); ++i) {
      EXPECT(seen[i] == 1);
      EXPECT(threads[i].x == i % 5 && threads[i].y == i / 5 % 3 && threads[i].z == i / 15 % 4);
      EXPECT(blocks[i].x == i / 60 % 3 && blocks[i].y == i / 180 % 2 && blocks[i].z == i / 360);
    }
  }
}

template <int count>
__global__ void shared_starts_as_nan(int* clean, int dynamic_floats) {
  FASTCTC_SHARED(float, fixed, count);
  FASTCTC_SHARED(double, other, 2 * count);
  FASTCTC_DYNAMIC_SHARED(raw);
  static_assert(sizeof(fixed) == count * sizeof(float), "");
  float* const dynamic = reinterpret_cast<float*>(raw);
  if (threadIdx.x == 0) {
    int nans = 0;
    for (int i = 0; i < count; ++i) nans += isnan(fixed[i]);
    for (int i = 0; i < 2 * count; ++i) nans += isnan(other[i]);
    for (int i = 0; i < dynamic_floats; ++i) nans += isnan(dynamic[i]);
    clean[blockIdx.x] = nans == 3 * count + dynamic_floats && reinterpret_cast<uintptr_t>(raw) % 16 == 0;
  }
  __syncthreads();
  if (threadIdx.x < count) fixed[threadIdx.x] = 1;
  for (int i = threadIdx.x; i < dynamic_floats; i += blockDim.x) dynamic[i] = 1;
}

TEST(shared_memory_of_every_block_starts_as_nan) {
  std::vector<int> clean(4);
  EXPECT(fastctc::launch(shared_starts_as_nan<7>, dim3(4), dim3(64), 100, nullptr, clean.data(), 25) == 0);
  EXPECT(fastctc::launch(shared_starts_as_nan<3>, dim3(4), dim3(64), 0, nullptr, clean.data(), 0) == 0);
  for (int block : clean) EXPECT(block == 1);
}

__global__ void scan(const int* in, int* out) {
  FASTCTC_DYNAMIC_SHARED(raw);
  int* const values = reinterpret_cast<int*>(raw);
  const int i = threadIdx.x, n = blockDim.x;
  values[i] = in[blockIdx.x * n + i];
  __syncthreads();
  for (int step = 1; step < n; step *= 2) {
    const int before = i >= step ? values[i - step] : 0;
    __syncthreads();
    values[i] += before;
    __syncthreads();
  }
  out[blockIdx.x * n + i] = values[i];
}

TEST(block_barriers_order_a_scan) {
  for (int order = 0; order < kOrders; ++order) {
    set_order(order);
    std::vector<int> in(3 * 200), out(in.size());
    for (size_t i = 0; i < in.size(); ++i) in[i] = int(i * 7919 % 101);
    EXPECT(fastctc::launch(scan, dim3(3), dim3(200), 800, nullptr, in.data(), out.data()) == 0);
    for (size_t i = 0, sum = 0; i < in.size(); ++i) {
      sum = (i % 200 ? sum : 0) + size_t(in[i]);
      EXPECT(size_t(out[i]) == sum);
    }
  }
}

__global__ void block_votes(int* out) {
  const int third = threadIdx.x % 3 == 0;
  out[threadIdx.x * 3] = __syncthreads_count(third);
  out[threadIdx.x * 3 + 1] = __syncthreads_or(threadIdx.x == 69);
  out[threadIdx.x * 3 + 2] = __syncthreads_and(threadIdx.x != 69);
}

TEST(block_barriers_count) {
  std::vector<int> out(3 * 70);
  EXPECT(fastctc::launch(block_votes, dim3(1), dim3(70), 0, nullptr, out.data()) == 0);
  for (int i = 0; i < 70; ++i) EXPECT(out[3 * i] == 24 && out[3 * i + 1] == 1 && out[3 * i + 2] == 0);
}

__global__ void all_shuffles(int argument, int width, int* out) {
  const int lane = threadIdx.x, value = 100 + lane;
  out[lane * 4] = __shfl_sync(kAll, value, argument, width);
  out[lane * 4 + 1] = __shfl_up_sync(kAll, value, unsigned(argument), width);
  out[lane * 4 + 2] = __shfl_down_sync(kAll, value, unsigned(argument), width);
  out[lane * 4 + 3] = __shfl_xor_sync(kAll, value, argument, width);
}

TEST(shuffles_of_every_width) {
  for (int order = 0; order < 3; ++order) {
    set_order(order);
    for (int width = 1; width <= 32; width *= 2) {
      for (int argument = 0; argument < width; ++argument) {
        std::vector<int> out(4 * 32);
        EXPECT(fastctc::launch(all_shuffles, dim3(1), dim3(32), 0, nullptr, argument, width, out.data()) == 0);
        for (int lane = 0; lane < 32; ++lane) {
          const int first = lane / width * width, last = first + width - 1;
          EXPECT(out[lane * 4] == 100 + first + argument);
          EXPECT(out[lane * 4 + 1] == 100 + (lane - argument >= first ? lane - argument : lane));
          EXPECT(out[lane * 4 + 2] == 100 + (lane + argument <= last ? lane + argument : lane));
          EXPECT(out[lane * 4 + 3] == 100 + (lane ^ argument));
        }
      }
    }
  }
}

__global__ void shuffle_types(int* good) {
  const int lane = threadIdx.x, from = (lane + 1) % 32;
  bool same = __shfl_sync(kAll, lane + 0.25, from) == from + 0.25;
  same &= __shfl_sync(kAll, float(lane) - 0.5f, from) == float(from) - 0.5f;
  same &= __shfl_sync(kAll, (1ll << 40) + lane, from) == (1ll << 40) + from;
  same &= __half2float(__shfl_sync(kAll, __float2half_rn(float(lane)), from)) == float(from);
  good[lane] = same;
}

TEST(shuffles_of_every_type) {
  std::vector<int> good(32);
  EXPECT(fastctc::launch(shuffle_types, dim3(1), dim3(32), 0, nullptr, good.data()) == 0);
  for (int lane : good) EXPECT(lane == 1);
}

__global__ void warp_votes(unsigned* out) {
  const unsigned lane = threadIdx.x;
  const unsigned odd = __ballot_sync(kAll, lane & 1u);
  const bool any = __any_sync(kAll, lane == 31), none = __any_sync(kAll, 0), all = __all_sync(kAll, lane < 32);
  const unsigned match = __match_any_sync(kAll, lane % 4);
  const int least = __reduce_min_sync(kAll, int(lane) - 5), most = __reduce_max_sync(kAll, -int(lane));
  const unsigned top = __reduce_max_sync(kAll, lane == 3 ? 0x80000000u : lane), sum = __reduce_add_sync(kAll, lane);
  const unsigned both = __reduce_and_sync(kAll, lane | 64u), either = __reduce_or_sync(kAll, lane);
  out[lane] = odd == 0xaaaaaaaau && any && !none && all && match == 0x11111111u << lane % 4 && least == -5 &&
              most == 0 && top == 0x80000000u && sum == 496 && both == 64u && either == 31u;
}

TEST(votes_and_reductions) {
  for (int order = 0; order < kOrders; ++order) {
    set_order(order);
    std::vector<unsigned> out(32);
    EXPECT(fastctc::launch(warp_votes, dim3(1), dim3(32), 0, nullptr, out.data()) == 0);
    for (unsigned lane : out) EXPECT(lane == 1);
  }
}

// 40 threads: the last warp has 8 lanes, which a full mask names too many of.
__global__ void short_warp(int* out) {
  out[threadIdx.x] = __popc(__ballot_sync(kAll, 1));
  __syncwarp();
}

TEST(a_warp_that_is_not_full) {
  std::vector<int> out(40);
  EXPECT(fastctc::launch(short_warp, dim3(1), dim3(40), 0, nullptr, out.data()) == 0);
  for (int i = 0; i < 40; ++i) EXPECT(out[i] == (i < 32 ? 32 : 8));
}

// The halves of a warp go round loops of different lengths, each on its own.
__global__ void half_warps(int* out) {
  const int half = threadIdx.x / 16;
  const unsigned mask = half ? 0xffff0000u : 0x0000ffffu;
  int sum = 0;
  for (int round = 0; round < 3 + 4 * half; ++round) {
    sum += __shfl_xor_sync(mask, int(threadIdx.x), 8, 16);
    __syncwarp(mask);
  }
  out[threadIdx.x] = sum;
}

TEST(half_warps_on_their_own) {
  for (int order = 0; order < kOrders; ++order) {
    set_order(order);
    std::vector<int> out(32);
    EXPECT(fastctc::launch(half_warps, dim3(1), dim3(32), 0, nullptr, out.data()) == 0);
    for (int i = 0; i < 32; ++i) EXPECT(out[i] == (i < 16 ? 3 : 7) * (i ^ 8));
  }
}

// Two teams pass values on, each round by a barrier of its own, from different places in the code.
__global__ void teams(int rounds, int* out) {
  FASTCTC_SHARED(int, ring, 96);
  const int i = threadIdx.x;
  ring[i] = i;
  if (i < 64) {
    for (int round = 0; round < rounds; ++round) {
      fastctc::bar_sync(1, 64);
      const int next = ring[(i + 1) % 64];
      fastctc::bar_sync(1, 64);
      ring[i] = next;
    }
  } else {
    fastctc::bar_sync(2, 32);
    const int next = ring[64 + (i + 1) % 32];
    fastctc::bar_sync(2, 32);
    ring[i] = next;
  }
  out[i] = ring[i];
}

TEST(named_barriers) {
  for (int order = 0; order < kOrders; ++order) {
    set_order(order);
    std::vector<int> out(96);
    EXPECT(fastctc::launch(teams, dim3(1), dim3(96), 0, nullptr, 5, out.data()) == 0);
    for (int i = 0; i < 96; ++i) EXPECT(out[i] == (i < 64 ? (i + 5) % 64 : 64 + (i + 1) % 32));
  }
}

__global__ void atomics(int* sum, float* real, unsigned long long* wide, int* most, int* lock, int* guarded) {
  atomicAdd(sum, 2);
  atomicAdd(real, 0.5f);
  atomicAdd(wide, 1ull << 33);
  atomicMax(most, int(threadIdx.x));
  while (atomicCAS(lock, 0, 1) != 0) {
  }
  __threadfence_block();
  *guarded += 1;
  __threadfence_block();
  atomicExch(lock, 0);
}

TEST(atomics_and_a_lock) {
  for (int order = 0; order < kOrders; ++order) {
    set_order(order);
    int sum = 0, most = -1, lock = 0, guarded = 0;
    float real = 0;
    unsigned long long wide = 0;
    EXPECT(fastctc::launch(atomics, dim3(2), dim3(64), 0, nullptr, &sum, &real, &wide, &most, &lock, &guarded) == 0);
    EXPECT(sum == 256 && real == 64 && wide == 128ull << 33 && most == 63 && guarded == 128);
  }
}

// Frame t + 2 is on its way while frame t is used.
__global__ void ring_of_copies(const float4* in, int frames, float4* out) {
  FASTCTC_SHARED(float4, ring, 3 * 32);
  const int lane = threadIdx.x;
  for (int t = 0; t < 2; ++t) {
    fastctc::copy_async16(&ring[t * 32 + lane], &in[t * 32 + lane]);
    fastctc::copy_async_commit();
  }
  for (int t = 0; t < frames; ++t) {
    if (t + 2 < frames) {
      fastctc::copy_async8(&ring[(t + 2) % 3 * 32 + lane], &in[(t + 2) * 32 + lane]);
      fastctc::copy_async4(&ring[(t + 2) % 3 * 32 + lane].z, &in[(t + 2) * 32 + lane].z);
      fastctc::copy_async4(&ring[(t + 2) % 3 * 32 + lane].w, &in[(t + 2) * 32 + lane].w);
    }
    fastctc::copy_async_commit();
    fastctc::copy_async_wait<2>();
    __syncwarp();
    out[t * 32 + lane] = ring[t % 3 * 32 + 31 - lane];
    __syncwarp();
  }
}

TEST(asynchronous_copies) {
  for (int order = 0; order < kOrders; ++order) {
    set_order(order);
    std::vector<float4> in(10 * 32), out(in.size());
    for (size_t i = 0; i < in.size(); ++i) in[i] = make_float4(float(i), float(i) + 0.25f, float(i) + 0.5f, -float(i));
    EXPECT(fastctc::launch(ring_of_copies, dim3(1), dim3(32), 0, nullptr, in.data(), 10, out.data()) == 0);
    for (int i = 0; i < 320; ++i) EXPECT(std::memcmp(&out[i], &in[i / 32 * 32 + 31 - i % 32], sizeof(float4)) == 0);
  }
}

__global__ void copies_before_the_wait(const float* in, float* out) {
  FASTCTC_SHARED(float, ring, 64);
  ring[threadIdx.x] = ring[threadIdx.x + 32] = 1;
  fastctc::copy_async4(&ring[threadIdx.x], &in[threadIdx.x]);
  fastctc::copy_async_commit();
  fastctc::copy_async4(&ring[threadIdx.x + 32], &in[threadIdx.x]);
  fastctc::copy_async_commit();
  fastctc::copy_async_wait<1>();
  out[threadIdx.x] = ring[threadIdx.x];
  out[threadIdx.x + 32] = ring[threadIdx.x + 32];
}

TEST(a_copy_that_nobody_waited_for_reads_as_nan) {
  std::vector<float> in(32, 3.0f), out(64);
  EXPECT(fastctc::launch(copies_before_the_wait, dim3(1), dim3(32), 0, nullptr, in.data(), out.data()) == 0);
  for (int i = 0; i < 32; ++i) EXPECT(out[i] == 3 && std::isnan(out[i + 32]));
}

__global__ void note_thread(std::vector<unsigned>* order) {
  order->push_back(blockIdx.x * 64 + threadIdx.x);
  __syncthreads();
}

TEST(plain_orders_differ_and_repeat) {
  std::vector<std::vector<unsigned>> orders;
  for (int order = 0; order < kOrders; ++order) {
    set_order(order);
    std::vector<unsigned> first, second;
    EXPECT(fastctc::launch(note_thread, dim3(3), dim3(64), 0, nullptr, &first) == 0);
    EXPECT(fastctc::launch(note_thread, dim3(3), dim3(64), 0, nullptr, &second) == 0);
    EXPECT(first.size() == 192 && first == second);
    for (const auto& other : orders) EXPECT(first != other);
    orders.push_back(first);
  }
  for (unsigned i = 0; i < 192; ++i) EXPECT(orders[0][i] == i && orders[1][i] == 191 - i);
}

TEST(launches_that_a_gpu_refuses) {
  const auto configured = [](dim3 grid, dim3 block, size_t bytes) {
    std::vector<int> out(64 * 1024);
    const cudaError_t error =
        fastctc::launch(shared_starts_as_nan<5>, grid, block, bytes, nullptr, out.data(), int(bytes / 4));
    EXPECT(cudaGetLastError() == error && cudaGetLastError() == cudaSuccess);
    return error;
  };
  EXPECT(configured(dim3(1), dim3(1024), 48 << 10) == cudaSuccess);
  EXPECT(configured(dim3(1), dim3(1025), 0) == cudaErrorInvalidConfiguration);
  EXPECT(configured(dim3(0), dim3(32), 0) == cudaErrorInvalidConfiguration);
  EXPECT(configured(dim3(1, 65536), dim3(32), 0) == cudaErrorInvalidConfiguration);
  EXPECT(configured(dim3(1), dim3(1, 1, 65), 0) == cudaErrorInvalidConfiguration);
  EXPECT(configured(dim3(1), dim3(32), (48 << 10) + 4) == cudaErrorInvalidValue);
  const auto attribute = cudaFuncAttributeMaxDynamicSharedMemorySize;
  EXPECT(cudaFuncSetAttribute(shared_starts_as_nan<5>, attribute, (227 << 10) + 1) == cudaErrorInvalidValue);
  EXPECT(cudaGetLastError() == cudaErrorInvalidValue);
  EXPECT(cudaFuncSetAttribute(shared_starts_as_nan<5>, attribute, 227 << 10) == cudaSuccess);
  EXPECT(configured(dim3(1), dim3(32), 227 << 10) == cudaSuccess);
}

// Every number of the narrow type survives, and between two neighbours floats go to the nearer, ties to the even one.
template <class Narrow>
void check_rounding(Narrow (*narrow)(float), float (*wide)(Narrow), unsigned infinity) {
  for (unsigned bits = 0; bits < infinity; ++bits) {
    const Narrow number = fastctc::simt::bit_cast<Narrow>(static_cast<unsigned short>(bits));
    const Narrow next = fastctc::simt::bit_cast<Narrow>(static_cast<unsigned short>(bits + 1));
    const auto bits_of = [&](double value) { return fastctc::simt::bit_cast<unsigned short>(narrow(float(value))); };
    const double low = wide(number);
    const double high = bits + 1 == infinity
                            ? 2 * low - wide(fastctc::simt::bit_cast<Narrow>(static_cast<unsigned short>(bits - 1)))
                            : wide(next);
    const double middle = (low + high) / 2;
    EXPECT(bits_of(low) == bits && bits_of(-low) == (bits | 0x8000u));
    EXPECT(bits_of(middle) == bits + (bits & 1u));
    EXPECT(bits_of(std::nextafter(float(middle), 0.0f)) == bits);
    EXPECT(bits_of(std::nextafter(float(middle), INFINITY)) == bits + 1);
  }
  EXPECT(fastctc::simt::bit_cast<unsigned short>(narrow(INFINITY)) == infinity);
  EXPECT(fastctc::simt::bit_cast<unsigned short>(narrow(-INFINITY)) == (infinity | 0x8000u));
  EXPECT(wide(narrow(INFINITY)) == INFINITY && wide(narrow(-INFINITY)) == -INFINITY);
  EXPECT(std::isnan(wide(narrow(NAN))));
}

TEST(half_precision_rounds_to_nearest_even) { check_rounding(__float2half_rn, __half2float, 0x7c00u); }
TEST(bfloat16_rounds_to_nearest_even) { check_rounding(__float2bfloat16_rn, __bfloat162float, 0x7f80u); }

TEST(small_functions) {
  EXPECT(max(NAN, 1.0f) == 1 && min(2.0, double(NAN)) == 2 && max(-1, 3) == 3);
  EXPECT(__viaddmax_s32(2147483647, 1, -5) == -5 && __viaddmax_s32(2, 3, 4) == 5 && __viaddmin_s32(2, 3, 4) == 4);
  EXPECT(__clz(1) == 31 && __clz(0) == 32 && __ffs(8) == 4 && __ffs(0) == 0 && __popcll(~0ull) == 64);
  EXPECT(__funnelshift_l(0x80000000u, 1u, 1) == 3u && __funnelshift_r(0u, 1u, 1) == 0x80000000u);
  EXPECT(__int_as_float(0x3f800000) == 1.0f && __double_as_longlong(1.0) == 0x3ff0000000000000ll);
  EXPECT(__umulhi(0x80000000u, 6u) == 3u && __float2int_rn(2.5f) == 2 && __double2ll_rd(-1.5) == -2);
}

}  // namespace
