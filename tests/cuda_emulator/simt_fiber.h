// A fiber: a stack of its own and the registers to go on with. AddressSanitizer and ThreadSanitizer are told of every
// switch where one of them is in the process; they are found by weak symbols, so that this code is compiled once,
// without instrumentation, and its own accesses are invisible to them.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) || defined(FASTCTC_SIMT_UCONTEXT)
#define FASTCTC_SIMT_USES_UCONTEXT 1
#include <ucontext.h>
#endif

namespace fastctc {
namespace simt {

struct Fiber {
#ifdef FASTCTC_SIMT_USES_UCONTEXT
  ucontext_t context;
#else
  void* stack_pointer = nullptr;
#endif
  const void* stack = nullptr;  // lowest address; for the caller's own stack known after the first switch
  size_t stack_bytes = 0;
  void* asan_frames = nullptr;
  void* tsan = nullptr;
};

// Prepares `fiber`, new or done, to run entry() on this stack; entry never returns and starts with fiber_started().
void make_fiber(Fiber* fiber, void* stack, size_t bytes, void (*entry)());
void destroy_fiber(Fiber* fiber);
// `from` is the fiber that runs now; `last` says that it will not be switched to again.
void switch_fiber(Fiber* from, Fiber* to, bool last = false);
// First thing on a new fiber. The first one after adopt_thread was entered from the adopted one and learns its stack.
void fiber_started(Fiber* adopted);
// Makes `fiber` stand for the code that runs now.
void adopt_thread(Fiber* fiber);

bool has_asan();
bool has_tsan();
// What came before release(token) in one fiber has happened for whoever calls acquire(token) later.
void release(void* token);
void acquire(void* token);

// Memory of many stacks, with an inaccessible page below each.
class Stacks {
 public:
  Stacks() = default;
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;
  ~Stacks();
  void reserve(size_t count);
  void* stack(size_t index) const;
  static size_t bytes();
  // Forgets what abandoned fibers left marked as out of bounds.
  void unpoison() const;

 private:
  char* memory_ = nullptr;
  size_t count_ = 0;
};

// Hides the interceptors' view (malloc, memset) of the emulator's own memory from ThreadSanitizer.
class Unwatched {
 public:
  Unwatched();
  ~Unwatched();
  Unwatched(const Unwatched&) = delete;
  Unwatched& operator=(const Unwatched&) = delete;
};

}  // namespace simt
}  // namespace fastctc
