// The scheduler: which thread of a block goes on, and the life of threads, blocks and launches.
#include "simt.h"

#include <algorithm>
#include <new>

#include "simt_state.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace fastctc {
namespace simt {
namespace {

uint64_t random_below(uint64_t limit) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return (random_state >> 11) % limit;
}

unsigned random_bit(unsigned mask) {
  for (uint64_t skip = random_below(static_cast<uint64_t>(__builtin_popcount(mask))); skip > 0; --skip)
    mask &= mask - 1;
  return static_cast<unsigned>(__builtin_ctz(mask));
}

// Random orders of an even seed let a warp run on for a while, those of an odd seed change warps all the time.
unsigned random_warp(const Thread* previous) {
  if (previous && order % 2 == 0) {
    const unsigned warp = linear(previous) / kWarp;
    if ((block.ready_warps >> warp & 1u) && random_below(64) != 0) return warp;
  }
  return random_bit(block.ready_warps);
}

void end_pauses() {
  for (unsigned warp = 0; warp * kWarp < block.threads; ++warp) {
    block.ready[warp] = std::exchange(block.paused[warp], 0);
    if (block.ready[warp]) block.ready_warps |= 1u << warp;
  }
}

Thread* next_thread(const Thread* previous) {
  if (!failure.empty()) return nullptr;
  if (!block.ready_warps) end_pauses();
  if (!block.ready_warps) return nullptr;
  unsigned warp, lane;
  if (order == 0) {
    warp = static_cast<unsigned>(__builtin_ctz(block.ready_warps));
    lane = static_cast<unsigned>(__builtin_ctz(block.ready[warp]));
  } else if (order == 1) {
    warp = 31u - static_cast<unsigned>(__builtin_clz(block.ready_warps));
    lane = 31u - static_cast<unsigned>(__builtin_clz(block.ready[warp]));
  } else {
    warp = random_warp(previous);
    lane = random_bit(block.ready[warp]);
  }
  block.ready[warp] &= ~(1u << lane);
  if (!block.ready[warp]) block.ready_warps &= ~(1u << warp);
  return &threads[warp * kWarp + lane];
}

void finish_thread(Thread& thread) {
  thread.state = State::exited;
  block.gone[linear(&thread) / kWarp] |= 1u << linear(&thread) % kWarp;
  ++block.exited;
  block.idle_pauses = 0;
  leave_warp(thread);
}

// Goes to the caller for good, which knows from now on of all that the thread did.
[[noreturn]] void leave_failed_launch() {
  release(&end_token);
  Thread* const from = std::exchange(current, nullptr);
  switch_fiber(from->fiber, &caller, true);
  std::abort();  // nobody comes back to a thread that has left
}

void thread_main() {
  fiber_started(&caller);
  if (!failure.empty()) leave_failed_launch();
  acquire(&launch_token);
  kernel_body(kernel_argument);
  release(&end_token);
  finish_thread(*current);
  reschedule(true);
  std::abort();  // nobody comes back to a thread that has exited
}

void check_end_of_block() {
  if (!failure.empty() || block.exited == block.threads) return;
  std::string what = "deadlock:";
  if (block.barriers[0].arrived + block.exited == block.threads) what = "__syncthreads that some threads never reach:";
  failure = where() + ", " + what + roll_call();
}

void run_block(FiberSet* set) {
  const unsigned count = block.threads;
  std::memset(block.ready, 0, sizeof block.ready);
  std::memset(block.gone, 0, sizeof block.gone);
  std::memset(block.paused, 0, sizeof block.paused);
  std::memset(block.warp_generations, 0, sizeof block.warp_generations);
  std::fill(block.barriers, block.barriers + kBarriers, Barrier());
  block.ready_warps = block.exited = 0;
  block.idle_pauses = 0;
  block.set = set;
  block.shared.clear();
  block.dynamic_shared = static_cast<char*>(shared_memory(nullptr, std::max<size_t>(launched->shared_bytes, 1), 16));
  for (unsigned i = 0; i < count; ++i) {
    Thread& thread = threads[i];
    thread.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
    thread.first_copy = thread.copy_count = 0;
    thread.group = 0;
    thread.fiber = &set->fibers[i];
    make_fiber(thread.fiber, set->stacks.stack(i), Stacks::bytes(), thread_main);
    make_ready(thread);
  }
  current = nullptr;
  reschedule();
  check_end_of_block();
  for (unsigned i = 0; i < count && !failure.empty(); ++i) {
    if (threads[i].state == State::exited) continue;
    current = &threads[i];
    switch_fiber(&caller, threads[i].fiber);
  }
  ++counted.blocks;
}

std::vector<uint64_t> block_order(uint64_t count) {
  std::vector<uint64_t> blocks(count);
  for (uint64_t i = 0; i < count; ++i) blocks[i] = order == 1 ? count - 1 - i : i;
  if (order > 1)
    for (uint64_t i = count; i > 1; --i) std::swap(blocks[i - 1], blocks[random_below(i)]);
  return blocks;
}

FiberSet* fiber_set(uint64_t turn) {
  const size_t count = has_tsan() ? kWatchedSets : 1;
  while (sets.size() < count) sets.push_back(std::make_unique<FiberSet>());
  FiberSet* const set = sets[turn % count].get();
  if (set->fibers.size() < block.threads) {
    for (Fiber& fiber : set->fibers) destroy_fiber(&fiber);
    set->fibers.assign(block.threads, Fiber());
    set->stacks.reserve(block.threads);
  }
  return set;
}

// Abandoned fibers have left traces on their stacks and in the sanitizers.
void discard(FiberSet* set) {
  set->stacks.unpoison();
  for (Fiber& fiber : set->fibers) destroy_fiber(&fiber);
}

void run_blocks() {
  std::vector<std::vector<SharedArray>> kept;
  uint64_t turn = 0;
  for (uint64_t index : block_order(uint64_t(gridDim.x) * gridDim.y * gridDim.z)) {
    blockIdx = {static_cast<unsigned>(index % gridDim.x), static_cast<unsigned>(index / gridDim.x % gridDim.y),
                static_cast<unsigned>(index / gridDim.x / gridDim.y)};
    run_block(fiber_set(turn++));
    // ThreadSanitizer takes memory that is freed for written to, by somebody whom nothing orders behind the block.
    if (has_tsan()) kept.push_back(std::move(block.shared));
    block.shared.clear();
    if (!failure.empty()) break;
  }
  acquire(&end_token);
  if (!failure.empty()) discard(block.set);
}

cudaError_t check(const Launch& launch) {
  const uint64_t size = uint64_t(launch.block.x) * launch.block.y * launch.block.z;
  const dim3 grid = launch.grid;
  if (size == 0 || size > kMaxThreads || launch.block.z > 64) return cudaErrorInvalidConfiguration;
  if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    return cudaErrorInvalidConfiguration;
  return check_shared_bytes(launch.kernel, launch.shared_bytes);
}

}  // namespace

void make_ready(Thread& thread) {
  const unsigned i = linear(&thread);
  thread.state = State::ready;
  block.ready[i / kWarp] |= 1u << i % kWarp;
  block.ready_warps |= 1u << i / kWarp;
}

void reschedule(bool last) {
  Thread* const from = current;
  Thread* const next = next_thread(from);
  if (next == from && from) return;
  current = next;
  ++counted.switches;
  if (next) threadIdx = next->index;
  switch_fiber(from ? from->fiber : &caller, next ? next->fiber : &caller, last);
  if (from && !failure.empty()) leave_failed_launch();
}

[[noreturn]] void fail(const std::string& what) {
  {
    Unwatched unwatched;
    if (failure.empty()) failure = where() + ", " + what;
  }
  reschedule();
  std::abort();  // reschedule comes back to end the thread
}

Counts counts() { return counted; }

void pause() {
  Thread& thread = *current;
  if (++block.idle_pauses > kMaxIdlePauses)
    fail(thread_name(thread) + " goes round a loop of atomics for ever;" + roll_call());
  thread.state = State::ready;
  if (order > 1)
    make_ready(thread);
  else  // behind all others, or the thread that comes first in the order would wait for the rest for ever
    block.paused[linear(&thread) / kWarp] |= 1u << linear(&thread) % kWarp;
  reschedule();
}

void thread_fence() {
  release(&fence_token);
  acquire(&fence_token);
}

void* shared_memory(const void* key, size_t bytes, size_t alignment) {
  for (const SharedArray& array : block.shared)
    if (array.key == key) return array.memory.get();
  Unwatched unwatched;
  void* memory = nullptr;
  if (posix_memalign(&memory, std::max(alignment, sizeof(void*)), bytes) != 0) throw std::bad_alloc();
  std::memset(memory, 0xff, bytes);
  block.shared.push_back({key, {static_cast<char*>(memory), &std::free}});
  return memory;
}

char* dynamic_shared() { return block.dynamic_shared; }

void add_copy(const AsyncCopy& copy, const char* file, int line) {
  Thread& thread = *current;
  const auto misaligned = [&](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % copy.bytes != 0; };
  if (misaligned(copy.shared) || misaligned(copy.global))
    fail(thread_name(thread) + ": an asynchronous copy of " + std::to_string(copy.bytes) + " bytes at " +
         site(file, line) + " is not aligned to them");
  if (thread.copy_count == kMaxCopies)
    fail(thread_name(thread) + ": more than " + std::to_string(kMaxCopies) + " asynchronous copies that nobody waits " +
         "for at " + site(file, line));
  thread.copies[(thread.first_copy + thread.copy_count++) % kMaxCopies] = {copy, thread.group};
}

void commit_copies() { ++current->group; }

bool take_copy(int groups, AsyncCopy* copy) {
  Thread& thread = *current;
  if (thread.copy_count == 0) return false;
  const Thread::Pending& oldest = thread.copies[thread.first_copy];
  if (oldest.group + static_cast<uint64_t>(groups) >= thread.group) return false;
  *copy = oldest.copy;
  thread.first_copy = (thread.first_copy + 1) % kMaxCopies;
  --thread.copy_count;
  return true;
}

cudaError_t run(const Launch& launch, void (*body)(void*), void* argument) {
  const std::lock_guard<std::mutex> lock(running);
  if (const cudaError_t error = check(launch)) return remembered(error);
  const char* const text = std::getenv("FASTCTC_SIMT_ORDER");
  order = text ? std::strtoull(text, nullptr, 10) : 0;
  random_state = (order + 1) * 0x9e3779b97f4a7c15ull;
  launched = &launch;
  kernel_body = body;
  kernel_argument = argument;
  failure.clear();
  blockDim = launch.block;
  gridDim = launch.grid;
  block.threads = launch.block.x * launch.block.y * launch.block.z;
  if (threads.size() < block.threads) threads.resize(block.threads);
  for (Thread& thread : threads)
    if (!thread.copies) thread.copies.reset(new Thread::Pending[kMaxCopies]);
  adopt_thread(&caller);
  release(&launch_token);
  ++counted.launches;
  run_blocks();
  if (!failure.empty()) throw Error(failure);
  return cudaSuccess;
}

}  // namespace simt
}  // namespace fastctc
