// What the emulator's own files share: the state of the launch that runs. There is one at a time in a process.
#pragma once

#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "simt.h"
#include "simt_fiber.h"

#undef launch

namespace fastctc {
namespace simt {

constexpr unsigned kWarp = 32, kMaxThreads = 1024, kBarriers = 16, kGenerations = 8, kMaxCopies = 128;
constexpr size_t kDefaultSharedBytes = 48 << 10, kMaxSharedBytes = 227 << 10;
// Pauses of one block without anything else happening, after which its threads are held to wait for each other.
constexpr uint64_t kMaxIdlePauses = 10'000'000;

enum class State { ready, block_barrier, named_barrier, warp, exited };

struct Thread {
  Fiber* fiber = nullptr;
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

// What a block's threads run on. Blocks take turns in a few of them under ThreadSanitizer, which then sees the threads
// of neighbouring blocks as different ones that nothing orders; without it there is one.
struct FiberSet {
  Stacks stacks;
  std::vector<Fiber> fibers;
  Tokens tokens;
};
constexpr size_t kWatchedSets = 4;

struct Block {
  unsigned threads = 0, exited = 0;
  unsigned ready_warps = 0;              // warps with a thread that can go on
  unsigned ready[kMaxThreads / kWarp];   // their lanes
  unsigned paused[kMaxThreads / kWarp];  // lanes that can go on once no other thread can
  unsigned gone[kMaxThreads / kWarp];    // lanes that have exited
  Barrier barriers[kBarriers];
  uint64_t warp_generations[kMaxThreads / kWarp][kWarp];  // by the lowest lane of the mask
  uint64_t idle_pauses = 0;
  char* dynamic_shared = nullptr;
  std::vector<SharedArray> shared;
  FiberSet* set = nullptr;
};

inline std::mutex running;
inline std::vector<Thread> threads;
inline Block block;
inline Thread* current;  // null while the caller's own code runs
inline Fiber caller;
inline std::vector<std::unique_ptr<FiberSet>> sets;
inline const Launch* launched;
inline void (*kernel_body)(void*);
inline void* kernel_argument;
inline std::string failure;
inline Counts counted;
inline uint64_t order, random_state;
inline char launch_token, end_token, fence_token;

inline unsigned linear(const Thread* thread) { return static_cast<unsigned>(thread - threads.data()); }
// Lanes of the warp that the block has.
inline unsigned existing_lanes(unsigned warp) {
  const unsigned count = block.threads - warp * kWarp;
  return count >= kWarp ? 0xffffffffu : (1u << count) - 1;
}

// simt.cpp: the scheduler
void make_ready(Thread& thread);
// Leaves the running thread for another, or for the caller where none can run; `last`: for good.
void reschedule(bool last = false);
// Ends the launch with a message about the running thread.
[[noreturn]] void fail(const std::string& what);
cudaError_t check_shared_bytes(const void* kernel, size_t bytes);
cudaError_t remembered(cudaError_t error);

// simt_sync.cpp: barriers and warp-wide operations
// Completes, or finds fault with, the operations that the thread's warp waits for it in.
void leave_warp(Thread& thread);

// simt_messages.cpp
std::string hex(unsigned mask);
std::string text_of(uint3 index);
std::string site(const char* file, int line);
std::string thread_name(const Thread& thread);
std::string where();      // kernel and block
std::string roll_call();  // what each thread of the block does

}  // namespace simt
}  // namespace fastctc
