#include "simt_fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <new>

extern "C" {
[[gnu::weak]] void __sanitizer_start_switch_fiber(void** fake_stack_save, const void* bottom, size_t size);
[[gnu::weak]] void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom_old, size_t* size_old);
[[gnu::weak]] void __asan_unpoison_memory_region(const volatile void* address, size_t size);
[[gnu::weak]] void* __tsan_get_current_fiber(void);
[[gnu::weak]] void* __tsan_create_fiber(unsigned flags);
[[gnu::weak]] void __tsan_destroy_fiber(void* fiber);
[[gnu::weak]] void __tsan_switch_to_fiber(void* fiber, unsigned flags);
[[gnu::weak]] void __tsan_acquire(void* address);
[[gnu::weak]] void __tsan_release(void* address);
[[gnu::weak]] void AnnotateIgnoreReadsBegin(const char* file, int line);
[[gnu::weak]] void AnnotateIgnoreReadsEnd(const char* file, int line);
[[gnu::weak]] void AnnotateIgnoreWritesBegin(const char* file, int line);
[[gnu::weak]] void AnnotateIgnoreWritesEnd(const char* file, int line);
}

#ifndef FASTCTC_SIMT_USES_UCONTEXT
// Saves the registers that a call preserves, stores the stack pointer at *rdi, and goes on at the stack in rsi. Unlike
// swapcontext it makes no system call, which is most of what a switch would cost.
extern "C" void fastctc_simt_switch(void** save, void* load);
__asm__(R"(
.text
.hidden fastctc_simt_switch
.globl fastctc_simt_switch
.type fastctc_simt_switch, @function
fastctc_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fastctc_simt_switch, .-fastctc_simt_switch
)");
#endif

namespace fastctc {
namespace simt {
namespace {

// A switch must not count as synchronisation: only barriers order what threads do.
constexpr unsigned kNoSync = 1;

size_t page() {
  static const size_t bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

}  // namespace

bool has_asan() { return __sanitizer_start_switch_fiber != nullptr && __asan_unpoison_memory_region != nullptr; }
bool has_tsan() { return __tsan_create_fiber != nullptr; }

void release(void* token) {
  if (has_tsan()) __tsan_release(token);
}
void acquire(void* token) {
  if (has_tsan()) __tsan_acquire(token);
}

void make_fiber(Fiber* fiber, void* stack, size_t bytes, void (*entry)()) {
  fiber->stack = stack;
  fiber->stack_bytes = bytes;
  fiber->asan_frames = nullptr;
#ifdef FASTCTC_SIMT_USES_UCONTEXT
  getcontext(&fiber->context);
  fiber->context.uc_stack.ss_sp = stack;
  fiber->context.uc_stack.ss_size = bytes;
  fiber->context.uc_link = nullptr;
  makecontext(&fiber->context, entry, 0);
#else
  void** top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stack) + bytes) & ~uintptr_t(15));
  *--top = nullptr;  // in the place of a return address: a function starts 8 bytes off a multiple of 16
  *--top = reinterpret_cast<void*>(entry);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  fiber->stack_pointer = top;
#endif
  if (has_tsan() && !fiber->tsan) fiber->tsan = __tsan_create_fiber(0);
}

void destroy_fiber(Fiber* fiber) {
  if (fiber->tsan) __tsan_destroy_fiber(fiber->tsan);
  fiber->tsan = nullptr;
}

void adopt_thread(Fiber* fiber) {
  fiber->stack = nullptr;
  if (has_tsan()) fiber->tsan = __tsan_get_current_fiber();
}

void switch_fiber(Fiber* from, Fiber* to, bool last) {
  if (has_asan()) __sanitizer_start_switch_fiber(last ? nullptr : &from->asan_frames, to->stack, to->stack_bytes);
  if (has_tsan()) __tsan_switch_to_fiber(to->tsan, kNoSync);
#ifdef FASTCTC_SIMT_USES_UCONTEXT
  swapcontext(&from->context, &to->context);
#else
  fastctc_simt_switch(&from->stack_pointer, to->stack_pointer);
#endif
  if (has_asan()) __sanitizer_finish_switch_fiber(from->asan_frames, nullptr, nullptr);
}

void fiber_started(Fiber* adopted) {
  if (!has_asan()) return;
  const void* stack = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(nullptr, &stack, &bytes);
  if (adopted->stack) return;
  adopted->stack = stack;
  adopted->stack_bytes = bytes;
}

size_t Stacks::bytes() { return has_asan() || has_tsan() ? 256 << 10 : 64 << 10; }

void Stacks::reserve(size_t count) {
  if (count <= count_) return;
  const size_t each = bytes() + page();
  if (memory_) munmap(memory_, count_ * each);
  count_ = 0;
  memory_ = static_cast<char*>(
      mmap(nullptr, count * each, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (memory_ == MAP_FAILED) {
    memory_ = nullptr;
    throw std::bad_alloc();
  }
  count_ = count;
  for (size_t i = 0; i < count; ++i) mprotect(memory_ + i * each, page(), PROT_NONE);
}

Stacks::~Stacks() {
  if (memory_) munmap(memory_, count_ * (bytes() + page()));
}

void* Stacks::stack(size_t index) const { return memory_ + index * (bytes() + page()) + page(); }

void Stacks::unpoison() const {
  if (!has_asan()) return;
  for (size_t i = 0; i < count_; ++i) __asan_unpoison_memory_region(stack(i), bytes());
}

Unwatched::Unwatched() {
  if (!has_tsan()) return;
  AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
  AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
}
Unwatched::~Unwatched() {
  if (!has_tsan()) return;
  AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
  AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
}

}  // namespace simt
}  // namespace fastctc
