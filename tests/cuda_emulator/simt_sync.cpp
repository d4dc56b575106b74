#include <algorithm>

#include "simt_state.h"

namespace fastctc {
namespace simt {
namespace {

void wait(Thread& thread, State state, const char* file, int line) {
  thread.state = state;
  thread.file = file;
  thread.line = line;
}

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

char* barrier_token(int id) { return &block.set->tokens.barriers[id][block.barriers[id].generation % kGenerations]; }

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

}  // namespace

void leave_warp(Thread& thread) {
  const unsigned warp = linear(&thread) / kWarp, lane = linear(&thread) % kWarp;
  for (unsigned i = 0; i < kWarp && warp * kWarp + i < block.threads; ++i) {
    const Thread& other = threads[warp * kWarp + i];
    if (other.state != State::warp || !(other.mask >> lane & 1u)) continue;
    check_exited_lanes(other);
    complete_warp({warp, other.mask});
  }
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
  if (kind == WarpKind::syncwarp) {
    const int lowest = __builtin_ctz(mask);
    token = &block.set->tokens.warps[warp][lowest][block.warp_generations[warp][lowest] % kGenerations];
  }
  complete_warp({warp, mask});
  if (token)
    pass(token);
  else
    reschedule();
  return thread.value;
}

}  // namespace simt
}  // namespace fastctc
