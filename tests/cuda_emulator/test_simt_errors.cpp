// Kernels with one mistake each: the emulator stops them with a message, or a sanitizer sees them (bug_...).
#include "test_simt.h"

namespace {

constexpr unsigned kAll = 0xffffffffu;

template <class... Params>
void expect_error_of(const std::vector<std::string>& words, void (*kernel)(Params...), int threads = 96) {
  expect_error(words, [&] { fastctc::launch(kernel, dim3(2), dim3(unsigned(threads)), 0, nullptr); });
}

__global__ void barrier_for_some() {
  if (threadIdx.x < 40) __syncthreads();
}
TEST(a_barrier_that_some_threads_miss) {
  expect_error_of(
      {"CUDA emulator: kernel kernel launched at test_simt_errors.cpp:", "block (", "some threads never reach",
       "threads 0 to 39 in __syncthreads at test_simt_errors.cpp:", "threads 40 to 95 exited"},
      barrier_for_some);
}

template <int threads>
__global__ void named_in_full() {
  if (threadIdx.x == threads - 1) return;
  __syncthreads();
}
TEST(the_kernel_is_named_with_its_template_arguments) {
  expect_error({"kernel named_in_full<64> launched at", "threads 0 to 62 in __syncthreads", "thread 63 exited"},
               [] { fastctc::launch(named_in_full<64>, dim3(1), dim3(64), 0, nullptr); });
}

__global__ void two_barriers() {
  if (threadIdx.x < 64)
    __syncthreads();
  else
    __syncthreads();
}
TEST(barriers_in_two_branches) {
  expect_error_of({"is in __syncthreads at", "while thread (", "is in the one at", "lane "}, two_barriers);
}

__global__ void waits_elsewhere() {
  if (threadIdx.x < 32)
    __syncthreads();
  else if (threadIdx.x < 64)
    fastctc::bar_sync(3, 64);
}
TEST(threads_that_wait_for_each_other) {
  expect_error_of({"deadlock:", "threads 0 to 31 in __syncthreads at", "threads 32 to 63 in bar_sync(3, 64) at",
                   "threads 64 to 95 exited"},
                  waits_elsewhere);
}

__global__ void shuffle_with_exited() {
  if (threadIdx.x % 32 == 7) return;
  __syncwarp(kAll & ~128u);
  __shfl_sync(kAll, 1, 0);
}
TEST(a_shuffle_that_names_a_lane_which_has_exited) {
  expect_error_of({"__shfl_sync at", "waits for lanes 0x00000080, which have exited", "thread ("}, shuffle_with_exited);
}

__global__ void late_exit() {
  if (threadIdx.x % 32 == 7) {
    __syncwarp(128u);
    return;
  }
  __ballot_sync(kAll, 1);
}
TEST(a_vote_that_names_a_lane_which_exits_later) {
  expect_error_of({"__ballot_sync at", "waits for lanes 0x00000080, which have exited"}, late_exit);
}

__global__ void elsewhere() {
  if (threadIdx.x % 32 == 7)
    __syncthreads();
  else
    __shfl_sync(kAll, 1, 0);
}
TEST(a_shuffle_that_names_a_lane_which_is_elsewhere) {
  expect_error_of({"deadlock:", "threads 0 to 6 in __shfl_sync with mask 0xffffffff at", "thread 7 in __syncthreads"},
                  elsewhere, 32);
}

__global__ void masks_that_differ() { __shfl_sync(threadIdx.x < 16 ? kAll : 0xffff0000u, 1, 16); }
TEST(masks_that_differ_within_a_shuffle) {
  expect_error_of({"__shfl_sync at", "waits for lanes", "which have exited"}, masks_that_differ, 32);
}

__global__ void outside_of_mask() {
  if (threadIdx.x < 16) __shfl_sync(0xffffu, 1, int(threadIdx.x) + 1);
}
TEST(a_shuffle_that_reads_a_lane_outside_of_its_mask) {
  expect_error_of({"thread (15, 0, 0) (lane 15 of warp 0): __shfl_sync at", "reads lane 16, which is not among"},
                  outside_of_mask, 32);
}

__global__ void beyond_the_block() { __shfl_down_sync(kAll, 1, 4); }
TEST(a_shuffle_that_reads_a_lane_which_the_block_does_not_have) {
  expect_error_of({"__shfl_down_sync at", "reads lane ", "which is not among the lanes 0x000000ff"}, beyond_the_block,
                  40);
}

__global__ void without_itself() { __any_sync(0xfffffffeu, 1); }
TEST(a_mask_without_the_lane_itself) {
  expect_error_of({"lane 0 of warp", "has the mask 0xfffffffe, which leaves out the lane itself"}, without_itself);
}

__global__ void two_shuffles() {
  if (threadIdx.x % 32 < 16)
    __shfl_sync(kAll, 1, 0);
  else
    __shfl_sync(kAll, 1, 0);
}
TEST(shuffles_in_two_branches) {
  expect_error_of({"is in __shfl_sync of width 32 at", "while thread ("}, two_shuffles);
}

__global__ void odd_width() { __shfl_sync(kAll, 1, 0, 12); }
TEST(a_width_that_is_no_power_of_two) { expect_error_of({"has the width 12; it takes 1, 2, 4"}, odd_width); }

__global__ void bad_barrier() { fastctc::bar_sync(16, 32); }
TEST(a_named_barrier_that_does_not_exist) { expect_error_of({"bar_sync(16, 32) at", "from 1 to 15"}, bad_barrier); }

__global__ void part_of_a_warp() {
  if (threadIdx.x % 32 < 16) fastctc::bar_sync(1, 32);
}
TEST(a_named_barrier_met_by_part_of_a_warp) {
  expect_error_of({"barrier 1: only lanes 0x0000ffff of warp"}, part_of_a_warp, 64);
}

__global__ void counts_that_differ() { fastctc::bar_sync(1, threadIdx.x < 32 ? 64 : 96); }
TEST(a_named_barrier_with_two_counts) {
  expect_error_of({"bar_sync(1, ", "waits for ", "threads there"}, counts_that_differ);
}

__global__ void misaligned_copy() {
  FASTCTC_SHARED(float4, there, 2);
  FASTCTC_SHARED(float4, here, 2);
  fastctc::copy_async16(reinterpret_cast<char*>(here) + 8, there);
}
TEST(a_misaligned_copy) { expect_error_of({"copy of 16 bytes at", "is not aligned"}, misaligned_copy, 32); }

__global__ void waits_for_ever(int* flag) {
  while (atomicAdd(flag, 0) == 0) {
  }
}
TEST(threads_that_spin_for_ever) {
  int flag = 0;
  set_order(0);
  std::string message;
  try {
    fastctc::launch(waits_for_ever, dim3(1), dim3(2), 0, nullptr, &flag);
  } catch (const fastctc::simt::Error& error) {
    message = error.what();
  }
  EXPECT(message.find("goes round a loop of atomics for ever") != std::string::npos);
}

__global__ void one(int* out) {
  __syncthreads();
  atomicAdd(out, 1);
}
TEST(a_launch_after_an_error) {
  for (int round = 0; round < 3; ++round) {
    expect_error_of({"never reach"}, barrier_for_some);
    int out = 0;
    EXPECT(fastctc::launch(one, dim3(2), dim3(96), 0, nullptr, &out) == 0);
    EXPECT(out == 192);
  }
}

// A missing barrier shows as a wrong number in some order even without a sanitizer.
__global__ void neighbours(int* out) {
  FASTCTC_SHARED(int, values, 64);
  values[threadIdx.x] = int(threadIdx.x);
  out[threadIdx.x] = values[(threadIdx.x + 1) % 64];
}
TEST(plain_a_missing_barrier_gives_wrong_numbers) {
  for (int order = 0; order < kOrders; ++order) {
    set_order(order);
    std::vector<int> out(64);
    EXPECT(fastctc::launch(neighbours, dim3(1), dim3(64), 0, nullptr, out.data()) == 0);
    int wrong = 0;
    for (int i = 0; i < 64; ++i) wrong += out[i] != (i + 1) % 64;
    EXPECT(wrong > 0);
  }
}

void run(void (*kernel)(int*), unsigned blocks, unsigned threads) {
  std::vector<int> out(blocks * threads);
  EXPECT(fastctc::launch(kernel, dim3(blocks), dim3(threads), 64, nullptr, out.data()) == 0);
}

TEST(bug_race_no_block_barrier) { run(neighbours, 1, 64); }

__global__ void no_warp_barrier(int* out) {
  FASTCTC_SHARED(int, values, 32);
  values[threadIdx.x] = int(threadIdx.x);
  __shfl_sync(kAll, 1, 0);  // makes lanes meet, but orders no memory accesses
  out[threadIdx.x] = values[31 - threadIdx.x];
}
TEST(bug_race_a_shuffle_is_no_barrier) { run(no_warp_barrier, 1, 32); }

__global__ void wrong_team(int* out) {
  FASTCTC_SHARED(int, values, 64);
  values[threadIdx.x] = int(threadIdx.x);
  fastctc::bar_sync(1 + int(threadIdx.x / 32), 32);
  out[threadIdx.x] = values[63 - threadIdx.x];
}
TEST(bug_race_a_named_barrier_orders_its_own_threads_only) { run(wrong_team, 1, 64); }

__global__ void one_barrier_too_few(int* out) {
  FASTCTC_SHARED(int, value, 1);
  for (int round = 0; round < 3; ++round) {
    if (threadIdx.x == 0) value[0] = round;
    __syncthreads();
    out[threadIdx.x] += value[0];
  }
}
TEST(bug_race_written_again_before_all_have_read) { run(one_barrier_too_few, 1, 64); }

__global__ void all_to_one(int* out) { out[0] += int(threadIdx.x); }
TEST(bug_race_between_blocks) { run(all_to_one, 2, 1); }

__global__ void copied_for_others(int* out) {
  FASTCTC_SHARED(int, values, 64);
  fastctc::copy_async4(&values[threadIdx.x], &out[threadIdx.x]);
  fastctc::copy_async_commit();
  fastctc::copy_async_wait<0>();
  out[threadIdx.x] = values[63 - threadIdx.x];
}
TEST(bug_race_a_wait_is_no_barrier) { run(copied_for_others, 1, 64); }

__global__ void beyond_shared(int* out) {
  FASTCTC_SHARED(int, values, 32);
  FASTCTC_SHARED(int, others, 32);
  values[threadIdx.x] = others[threadIdx.x] = 1;
  int* const pointer = values;
  out[threadIdx.x] = pointer[threadIdx.x + 1];
}
TEST(bug_memory_beyond_a_shared_array) { run(beyond_shared, 1, 32); }

__global__ void beyond_dynamic(int* out) {
  FASTCTC_DYNAMIC_SHARED(raw);
  out[threadIdx.x] = raw[threadIdx.x + 60];
}
TEST(bug_memory_beyond_dynamic_shared_memory) { run(beyond_dynamic, 1, 32); }

__global__ void before_global(int* out) { out[int(threadIdx.x) - 1] = 1; }
TEST(bug_memory_before_a_global_buffer) { run(before_global, 1, 32); }

__global__ void copied_beyond(int* out) {
  FASTCTC_SHARED(int, values, 32);
  fastctc::copy_async4(&values[threadIdx.x], &out[threadIdx.x + 1]);
  fastctc::copy_async_commit();
  fastctc::copy_async_wait<0>();
}
TEST(bug_memory_a_copy_beyond_its_source) { run(copied_beyond, 1, 32); }

__global__ void misaligned_vector(int* out) {
  out[threadIdx.x] = reinterpret_cast<const int2*>(out + threadIdx.x / 2 * 2 + 1 - threadIdx.x % 2)->x;
}
TEST(bug_memory_a_misaligned_vector) { run(misaligned_vector, 1, 30); }

}  // namespace
