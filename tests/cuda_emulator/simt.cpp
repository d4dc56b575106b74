// The scheduler: which thread of a block goes on, what barriers and warp-wide operations do, and what is wrong when
// nobody can.
#include "simt.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "simt_fiber.h"

#undef launch

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace fastctc {
namespace simt {
namespace {

constexpr unsigned kWarp = 32, kMaxThreads = 1024, kBarriers = 16, kGenerations = 8, kMaxCopies = 128;
constexpr size_t kDefaultSharedBytes = 48 << 10, kMaxSharedBytes = 227 << 10;
// Pauses of one block without anything else happening, after which its threads are held to wait for each other.
constexpr uint64_t kMaxIdlePauses = 20'000'000;

enum class State { ready, block_barrier, named_barrier, warp, exited };

struct Thread {
  Fiber fiber;
  uint3 index{};
  State state = State::ready;
  const char* file = "";
  int line = 0;
  // what it waits for
  BarrierKind barrier_kind{};
  WarpKind warp_kind{};
  int barrier = 0, barrier_threads = 0, argument = 0, width = 0;
  unsigned mask = 0;
  uint64_t value = 0;
  // asynchronous copies: a ring of those not done yet, each with the number of its group
  struct Pending {
    AsyncCopy copy;
    uint64_t group;
  };
  std::unique_ptr<Pending[]> copies;
  unsigned first_copy = 0, copy_count = 0;
  uint64_t group = 0;
};

struct Barrier {
  unsigned arrived = 0;
  uint64_t generation = 0;
};

// ThreadSanitizer's view of the block: one token per barrier and generation, so that a fast thread's next arrival is
// not taken for one of the generation that a slow thread is leaving.
struct Tokens {
  char barriers[kBarriers][kGenerations];
  char warps[kMaxThreads / kWarp][kWarp][kGenerations];
};

struct SharedArray {
  const void* key;
  std::unique_ptr<char, decltype(&std::free)> memory;
};

// What has to outlive a block where accesses of different blocks are compared, that is, under ThreadSanitizer.
struct BlockMemory {
  std::vector<SharedArray> shared;
  std::unique_ptr<Stacks> stacks;
  std::unique_ptr<Tokens> tokens;
};

struct Block {
  unsigned threads = 0, exited = 0;
  unsigned ready_warps = 0;             // warps with a thread that can go on
  unsigned ready[kMaxThreads / kWarp];  // their lanes
  unsigned gone[kMaxThreads / kWarp];   // lanes that have exited
  Barrier barriers[kBarriers];
  uint64_t warp_generations[kMaxThreads / kWarp][kWarp];  // by the lowest lane of the mask
  uint64_t idle_pauses = 0;
  char* dynamic_shared = nullptr;
  BlockMemory memory;
};

std::mutex running;
std::vector<Thread> threads;
Block block;
Thread* current;
Fiber caller;
const Launch* launched;
void (*kernel_body)(void*);
void* kernel_argument;
std::string failure;
Counts counted;
uint64_t order, random_state;
char launch_token, end_token, fence_token;
std::vector<std::pair<const void*, size_t>> shared_limits;  // by kernel, from cudaFuncSetAttribute
cudaError_t last_error = cudaSuccess;

uint64_t random_below(uint64_t limit) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return (random_state >> 11) % limit;
}

unsigned linear(const Thread* thread) { return static_cast<unsigned>(thread - threads.data()); }
unsigned existing_lanes(unsigned warp) {
  const unsigned count = std::min(kWarp, block.threads - warp * kWarp);
  return count == kWarp ? 0xffffffffu : (1u << count) - 1;
}

// ---- messages

std::string hex(unsigned mask) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%08x", mask);
  return text;
}
std::string text_of(uint3 index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}
std::string site(const char* file, int line) {
  const char* slash = std::strrchr(file, '/');
  return std::string(slash ? slash + 1 : file) + ":" + std::to_string(line);
}
std::string kernel_name() {
  int depth = 0;
  const char* end = launched->call;
  for (; *end && !(*end == ',' && depth == 0); ++end) {
    if (*end == '<' || *end == '(' || *end == '{') ++depth;
    if (*end == '>' || *end == ')' || *end == '}') --depth;
  }
  return std::string(launched->call, end) + " launched at " + site(launched->file, launched->line);
}
std::string thread_name(const Thread& thread) {
  return "thread " + text_of(thread.index) + " (lane " + std::to_string(linear(&thread) % kWarp) + " of warp " +
         std::to_string(linear(&thread) / kWarp) + ")";
}
std::string where() { return "CUDA emulator: kernel " + kernel_name() + ", block " + text_of(blockIdx); }

std::string activity(const Thread& thread) {
  const std::string place = " at " + site(thread.file, thread.line);
  switch (thread.state) {
    case State::ready:
      return "could go on";
    case State::block_barrier:
      return "wait in __syncthreads" + place;
    case State::named_barrier:
      return "wait in bar_sync(" + std::to_string(thread.barrier) + ", " + std::to_string(thread.barrier_threads) +
             ")" + place;
    case State::warp:
      return std::string("wait in ") + name_of(thread.warp_kind) + " with mask " + hex(thread.mask) + place;
    case State::exited:
      return "have exited";
  }
  return "";
}

// What each range of threads does, equal neighbours together.
std::string roll_call() {
  constexpr int kMaxLines = 12;
  std::string text;
  int lines = 0;
  for (unsigned first = 0; first < block.threads;) {
    const std::string what = activity(threads[first]);
    unsigned end = first + 1;
    while (end < block.threads && activity(threads[end]) == what) ++end;
    if (++lines > kMaxLines) return text + "; ...";
    text += (first ? "; threads " : " threads ") + std::to_string(first);
    if (end - first > 1) text += " to " + std::to_string(end - 1);
    text += " " + what;
    first = end;
  }
  return text;
}

// ---- scheduling

void make_ready(Thread& thread) {
  const unsigned i = linear(&thread);
  thread.state = State::ready;
  block.ready[i / kWarp] |= 1u << i % kWarp;
  block.ready_warps |= 1u << i / kWarp;
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

Thread* next_thread(const Thread* previous) {
  if (!failure.empty() || !block.ready_warps) return nullptr;
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

// Leaves the running fiber (the caller's when there is none) for the next thread, or for the caller where none can run.
void reschedule(bool last = false) {
  Thread* const from = current;
  Thread* const next = next_thread(from);
  if (next == from && from) return;
  current = next;
  ++counted.switches;
  if (next) threadIdx = next->index;
  switch_fiber(from ? &from->fiber : &caller, next ? &next->fiber : &caller, last);
}

[[noreturn]] void fail(const std::string& what) {
  {
    Unwatched unwatched;
    if (failure.empty()) failure = where() + ", " + what;
  }
  reschedule();
  std::abort();  // the launch has ended; nobody comes back here
}

void wait(Thread& thread, State state, const char* file, int line) {
  thread.state = state;
  thread.file = file;
  thread.line = line;
}

// ---- barriers

void complete_block_barrier() {
  Barrier& barrier = block.barriers[0];
  int votes = 0;
  for (unsigned i = 0; i < block.threads; ++i) votes += threads[i].argument != 0;
  for (unsigned i = 0; i < block.threads; ++i) {
    Thread& thread = threads[i];
    switch (thread.barrier_kind) {
      case BarrierKind::sync:
      case BarrierKind::count:
        thread.value = static_cast<uint64_t>(votes);
        break;
      case BarrierKind::any:
        thread.value = votes > 0;
        break;
      case BarrierKind::all:
        thread.value = votes == static_cast<int>(block.threads);
        break;
    }
    make_ready(thread);
  }
  barrier.arrived = 0;
  ++barrier.generation;
  block.idle_pauses = 0;
}

void complete_named_barrier(int id) {
  Barrier& barrier = block.barriers[id];
  for (unsigned warp = 0; warp * kWarp < block.threads; ++warp) {
    unsigned lanes = 0;
    for (unsigned lane = 0; lane < kWarp && warp * kWarp + lane < block.threads; ++lane) {
      const Thread& thread = threads[warp * kWarp + lane];
      if (thread.state == State::named_barrier && thread.barrier == id) lanes |= 1u << lane;
    }
    if (lanes && lanes != existing_lanes(warp))
      fail("barrier " + std::to_string(id) + ": only lanes " + hex(lanes) + " of warp " + std::to_string(warp) +
           " arrived, a named barrier takes whole warps");
  }
  for (unsigned i = 0; i < block.threads; ++i)
    if (threads[i].state == State::named_barrier && threads[i].barrier == id) make_ready(threads[i]);
  barrier.arrived = 0;
  ++barrier.generation;
  block.idle_pauses = 0;
}

void pass(char* token) {
  release(token);
  reschedule();
  acquire(token);
}

char* barrier_token(int id) {
  return block.memory.tokens ? &block.memory.tokens->barriers[id][block.barriers[id].generation % kGenerations]
                             : nullptr;
}

// ---- warps

struct Group {
  unsigned warp, mask;
  Thread& lane(unsigned i) const { return threads[warp * kWarp + i]; }
  bool waits(unsigned i) const { return lane(i).state == State::warp && lane(i).mask == mask; }
};

unsigned source_lane(const Thread& thread, unsigned lane) {
  const int own = static_cast<int>(lane), width = thread.width, first = own & ~(width - 1);
  int source = own;
  switch (thread.warp_kind) {
    case WarpKind::shuffle:
      source = first + (thread.argument & (width - 1));
      break;
    case WarpKind::shuffle_up:
      source = own - thread.argument < first ? own : own - thread.argument;
      break;
    case WarpKind::shuffle_down:
      source = own + thread.argument >= first + width ? own : own + thread.argument;
      break;
    case WarpKind::shuffle_xor:
      source = (own ^ thread.argument) >= first + width ? own : own ^ thread.argument;
      break;
    default:
      break;
  }
  return static_cast<unsigned>(source) % kWarp;
}

uint64_t reduced(const Group& group, unsigned lanes, WarpKind kind) {
  uint32_t result = 0;
  bool first = true;
  for (unsigned i = 0; i < kWarp; ++i) {
    if (!(lanes >> i & 1u)) continue;
    const uint32_t value = static_cast<uint32_t>(group.lane(i).value);
    const int32_t a = static_cast<int32_t>(result), b = static_cast<int32_t>(value);
    if (first)
      result = value;
    else if (kind == WarpKind::reduce_add)
      result += value;
    else if (kind == WarpKind::reduce_min_signed)
      result = static_cast<uint32_t>(std::min(a, b));
    else if (kind == WarpKind::reduce_max_signed)
      result = static_cast<uint32_t>(std::max(a, b));
    else if (kind == WarpKind::reduce_min_unsigned)
      result = std::min(result, value);
    else if (kind == WarpKind::reduce_max_unsigned)
      result = std::max(result, value);
    else if (kind == WarpKind::reduce_and)
      result &= value;
    else if (kind == WarpKind::reduce_or)
      result |= value;
    else
      result ^= value;
    first = false;
  }
  return result;
}

uint64_t result_for(const Group& group, unsigned lanes, unsigned lane) {
  const Thread& thread = group.lane(lane);
  unsigned votes = 0, equal = 0;
  switch (thread.warp_kind) {
    case WarpKind::syncwarp:
      return 0;
    case WarpKind::shuffle:
    case WarpKind::shuffle_up:
    case WarpKind::shuffle_down:
    case WarpKind::shuffle_xor: {
      const unsigned source = source_lane(thread, lane);
      if (!(lanes >> source & 1u))
        fail(thread_name(thread) + ": " + name_of(thread.warp_kind) + " at " + site(thread.file, thread.line) +
             " reads lane " + std::to_string(source) + ", which is not among the lanes " + hex(lanes) +
             " that take part");
      return group.lane(source).value;
    }
    case WarpKind::ballot:
    case WarpKind::any:
    case WarpKind::all:
      for (unsigned i = 0; i < kWarp; ++i)
        if ((lanes >> i & 1u) && group.lane(i).value) votes |= 1u << i;
      if (thread.warp_kind == WarpKind::ballot) return votes;
      return thread.warp_kind == WarpKind::any ? votes != 0 : votes == lanes;
    case WarpKind::match_any:
      for (unsigned i = 0; i < kWarp; ++i)
        if ((lanes >> i & 1u) && group.lane(i).value == thread.value) equal |= 1u << i;
      return equal;
    default:
      return reduced(group, lanes, thread.warp_kind);
  }
}

void check_same_operation(const Group& group, const Thread& thread, const Thread& other) {
  const bool same_kind = thread.warp_kind == other.warp_kind;
  // __syncwarp may be met from different places; of the others, a GPU runs each place for itself.
  const bool same_place = thread.line == other.line && std::strcmp(thread.file, other.file) == 0;
  if (same_kind && thread.width == other.width && (same_place || thread.warp_kind == WarpKind::syncwarp)) return;
  fail(thread_name(thread) + " is in " + name_of(thread.warp_kind) + " of width " + std::to_string(thread.width) +
       " at " + site(thread.file, thread.line) + " while " + thread_name(other) + " of the same mask " +
       hex(group.mask) + " is in " + name_of(other.warp_kind) + " of width " + std::to_string(other.width) + " at " +
       site(other.file, other.line));
}

// Runs the operation where the last lane it waited for is there.
void complete_warp(const Group& group) {
  unsigned lanes = group.mask & existing_lanes(group.warp) & ~block.gone[group.warp];
  for (unsigned i = 0; i < kWarp; ++i)
    if ((lanes >> i & 1u) && !group.waits(i)) return;
  if (!lanes) return;
  const Thread& first = group.lane(static_cast<unsigned>(__builtin_ctz(lanes)));
  for (unsigned i = 0; i < kWarp; ++i)
    if (lanes >> i & 1u) check_same_operation(group, group.lane(i), first);
  uint64_t results[kWarp];
  for (unsigned i = 0; i < kWarp; ++i)
    if (lanes >> i & 1u) results[i] = result_for(group, lanes, i);
  for (unsigned i = 0; i < kWarp; ++i) {
    if (!(lanes >> i & 1u)) continue;
    group.lane(i).value = results[i];
    make_ready(group.lane(i));
  }
  ++block.warp_generations[group.warp][__builtin_ctz(group.mask)];
  block.idle_pauses = 0;
}

void check_exited_lanes(const Thread& thread) {
  const unsigned gone = thread.mask & block.gone[linear(&thread) / kWarp];
  if (gone && thread.warp_kind != WarpKind::syncwarp)
    fail(thread_name(thread) + ": " + name_of(thread.warp_kind) + " at " + site(thread.file, thread.line) +
         " waits for lanes " + hex(gone) + ", which have exited");
}

// ---- a thread's life

void finish_thread(Thread& thread) {
  const unsigned warp = linear(&thread) / kWarp;
  thread.state = State::exited;
  block.gone[warp] |= 1u << linear(&thread) % kWarp;
  ++block.exited;
  block.idle_pauses = 0;
  for (unsigned i = 0; i < kWarp && warp * kWarp + i < block.threads; ++i) {
    Thread& other = threads[warp * kWarp + i];
    if (other.state != State::warp || !(other.mask >> linear(&thread) % kWarp & 1u)) continue;
    check_exited_lanes(other);
    complete_warp({warp, other.mask});
  }
}

void thread_main() {
  fiber_started(&caller);
  acquire(&launch_token);
  kernel_body(kernel_argument);
  release(&end_token);
  finish_thread(*current);
  reschedule(true);
  std::abort();  // nobody comes back to a thread that has exited
}

// ---- blocks and launches

void check_end_of_block() {
  if (!failure.empty() || block.exited == block.threads) return;
  std::string what = "deadlock:";
  if (block.barriers[0].arrived + block.exited == block.threads) what = "__syncthreads that some threads never reach:";
  failure = where() + ", " + what + roll_call();
}

void run_block(BlockMemory memory) {
  const unsigned count = block.threads;
  std::memset(block.ready, 0, sizeof block.ready);
  std::memset(block.gone, 0, sizeof block.gone);
  std::memset(block.warp_generations, 0, sizeof block.warp_generations);
  std::fill(block.barriers, block.barriers + kBarriers, Barrier());
  block.ready_warps = block.exited = 0;
  block.idle_pauses = 0;
  block.memory = std::move(memory);
  block.dynamic_shared = static_cast<char*>(shared_memory(nullptr, std::max<size_t>(launched->shared_bytes, 1), 16));
  for (unsigned i = 0; i < count; ++i) {
    Thread& thread = threads[i];
    thread.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
    thread.first_copy = thread.copy_count = 0;
    thread.group = 0;
    make_fiber(&thread.fiber, block.memory.stacks->stack(i), Stacks::bytes(), thread_main);
    make_ready(thread);
  }
  current = nullptr;
  reschedule();
  check_end_of_block();
  for (unsigned i = 0; i < count; ++i) destroy_fiber(&threads[i].fiber);
  ++counted.blocks;
}

std::vector<uint64_t> block_order(uint64_t count) {
  std::vector<uint64_t> blocks(count);
  for (uint64_t i = 0; i < count; ++i) blocks[i] = order == 1 ? count - 1 - i : i;
  if (order > 1)
    for (uint64_t i = count; i > 1; --i) std::swap(blocks[i - 1], blocks[random_below(i)]);
  return blocks;
}

void run_blocks() {
  static Stacks* const reused = new Stacks;  // never freed, so that no order of destruction matters
  std::vector<BlockMemory> kept;
  for (uint64_t index : block_order(uint64_t(gridDim.x) * gridDim.y * gridDim.z)) {
    blockIdx = {static_cast<unsigned>(index % gridDim.x), static_cast<unsigned>(index / gridDim.x % gridDim.y),
                static_cast<unsigned>(index / gridDim.x / gridDim.y)};
    BlockMemory memory;
    memory.stacks.reset(has_tsan() ? new Stacks : reused);
    memory.stacks->reserve(block.threads);
    if (has_tsan()) memory.tokens.reset(new Tokens());
    run_block(std::move(memory));
    if (!failure.empty()) block.memory.stacks->unpoison();
    if (has_tsan())
      kept.push_back(std::move(block.memory));
    else
      block.memory.stacks.release();
    block.memory = BlockMemory();
    if (!failure.empty()) break;
  }
  acquire(&end_token);
}

size_t shared_limit(const void* kernel) {
  for (const auto& limit : shared_limits)
    if (limit.first == kernel) return limit.second;
  return kDefaultSharedBytes;
}

cudaError_t failed(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

cudaError_t check(const Launch& launch) {
  const uint64_t size = uint64_t(launch.block.x) * launch.block.y * launch.block.z;
  const dim3 grid = launch.grid;
  if (size == 0 || size > kMaxThreads || launch.block.z > 64) return cudaErrorInvalidConfiguration;
  if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    return cudaErrorInvalidConfiguration;
  if (launch.shared_bytes > shared_limit(launch.kernel)) return cudaErrorInvalidValue;
  return cudaSuccess;
}

}  // namespace

Counts counts() { return counted; }

const char* name_of(WarpKind kind) {
  static const char* const names[] = {
      "__syncwarp",        "__shfl_sync",       "__shfl_up_sync",    "__shfl_down_sync",  "__shfl_xor_sync",
      "__ballot_sync",     "__any_sync",        "__all_sync",        "__match_any_sync",  "__reduce_add_sync",
      "__reduce_min_sync", "__reduce_max_sync", "__reduce_min_sync", "__reduce_max_sync", "__reduce_and_sync",
      "__reduce_or_sync",  "__reduce_xor_sync"};
  return names[static_cast<int>(kind)];
}

int block_barrier(BarrierKind kind, int predicate, const char* file, int line) {
  Thread& thread = *current;
  wait(thread, State::block_barrier, file, line);
  thread.barrier_kind = kind;
  thread.argument = predicate;
  char* const token = barrier_token(0);
  if (block.barriers[0].arrived++ > 0) {
    for (unsigned i = 0; i < block.threads; ++i) {
      const Thread& other = threads[i];
      if (&other == &thread || other.state != State::block_barrier) continue;
      if (other.line != line || std::strcmp(other.file, file) != 0)
        fail(thread_name(thread) + " is in __syncthreads at " + site(file, line) + " while " + thread_name(other) +
             " is in the one at " + site(other.file, other.line));
      break;
    }
  }
  if (block.barriers[0].arrived == block.threads) complete_block_barrier();
  pass(token);
  return static_cast<int>(thread.value);
}

void named_barrier(int id, int count, const char* file, int line) {
  Thread& thread = *current;
  if (id < 1 || id >= static_cast<int>(kBarriers) || count < 1 || count % static_cast<int>(kWarp) != 0 ||
      count > static_cast<int>(block.threads))
    fail(thread_name(thread) + ": bar_sync(" + std::to_string(id) + ", " + std::to_string(count) + ") at " +
         site(file, line) + " takes a barrier from 1 to 15 and whole warps, no more than the block has");
  wait(thread, State::named_barrier, file, line);
  thread.barrier = id;
  thread.barrier_threads = count;
  for (unsigned i = 0; i < block.threads; ++i) {
    const Thread& other = threads[i];
    if (other.state == State::named_barrier && other.barrier == id && other.barrier_threads != count)
      fail(thread_name(thread) + ": bar_sync(" + std::to_string(id) + ", " + std::to_string(count) + ") at " +
           site(file, line) + " while " + thread_name(other) + " waits for " + std::to_string(other.barrier_threads) +
           " threads there");
  }
  char* const token = barrier_token(id);
  if (++block.barriers[id].arrived == static_cast<unsigned>(count)) complete_named_barrier(id);
  pass(token);
}

uint64_t warp_operation(WarpKind kind, unsigned mask, uint64_t value, int argument, int width, const char* file,
                        int line) {
  Thread& thread = *current;
  const unsigned warp = linear(&thread) / kWarp, lane = linear(&thread) % kWarp;
  wait(thread, State::warp, file, line);
  thread.warp_kind = kind;
  thread.mask = mask;
  thread.value = value;
  thread.argument = argument;
  thread.width = width;
  if (!(mask >> lane & 1u))
    fail(thread_name(thread) + ": " + name_of(kind) + " at " + site(file, line) + " has the mask " + hex(mask) +
         ", which leaves out the lane itself");
  if (width < 1 || width > static_cast<int>(kWarp) || (width & (width - 1)) != 0)
    fail(thread_name(thread) + ": " + name_of(kind) + " at " + site(file, line) + " has the width " +
         std::to_string(width) + "; it takes 1, 2, 4, 8, 16 or 32");
  check_exited_lanes(thread);
  // Only __syncwarp orders memory accesses; a shuffle or a vote does not.
  char* token = nullptr;
  if (kind == WarpKind::syncwarp && block.memory.tokens) {
    const int lowest = __builtin_ctz(mask);
    token = &block.memory.tokens->warps[warp][lowest][block.warp_generations[warp][lowest] % kGenerations];
  }
  complete_warp({warp, mask});
  if (token)
    pass(token);
  else
    reschedule();
  return thread.value;
}

void pause() {
  Thread& thread = *current;
  if (++block.idle_pauses > kMaxIdlePauses)
    fail(thread_name(thread) + " goes round a loop of atomics for ever;" + roll_call());
  make_ready(thread);
  reschedule();
}

void thread_fence() {
  release(&fence_token);
  acquire(&fence_token);
}

void* shared_memory(const void* key, size_t bytes, size_t alignment) {
  for (const SharedArray& array : block.memory.shared)
    if (array.key == key) return array.memory.get();
  Unwatched unwatched;
  void* memory = nullptr;
  if (posix_memalign(&memory, std::max(alignment, sizeof(void*)), bytes) != 0) throw std::bad_alloc();
  std::memset(memory, 0xff, bytes);
  block.memory.shared.push_back({key, {static_cast<char*>(memory), &std::free}});
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
  if (const cudaError_t error = check(launch)) return failed(error);
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

// ---- the runtime's host interface

using fastctc::simt::failed;

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
  }
  return "unrecognized error code";
}
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
  }
  return "unrecognized error code";
}
cudaError_t cudaPeekAtLastError() { return fastctc::simt::last_error; }
cudaError_t cudaGetLastError() { return std::exchange(fastctc::simt::last_error, cudaSuccess); }
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return failed(device == 0 ? cudaSuccess : cudaErrorInvalidDevice); }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device != 0) return failed(cudaErrorInvalidDevice);
  *properties = cudaDeviceProp{"fastctc CUDA emulator", size_t(1) << 32, 9, 0, 4};
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return failed(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = fastctc::simt::kMaxThreads;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = fastctc::simt::kDefaultSharedBytes;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = fastctc::simt::kMaxSharedBytes;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = fastctc::simt::kMaxSharedBytes + 1024;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = 4;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      return cudaSuccess;
  }
  return failed(cudaErrorInvalidValue);
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = 0;
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  std::memset(memory, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || static_cast<size_t>(value) > fastctc::simt::kMaxSharedBytes) return failed(cudaErrorInvalidValue);
  const std::lock_guard<std::mutex> lock(fastctc::simt::running);
  for (auto& limit : fastctc::simt::shared_limits)
    if (limit.first == kernel) {
      limit.second = static_cast<size_t>(value);
      return cudaSuccess;
    }
  fastctc::simt::shared_limits.emplace_back(kernel, static_cast<size_t>(value));
  return cudaSuccess;
}
