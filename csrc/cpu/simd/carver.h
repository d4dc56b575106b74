// A kernel's scratch memory, cut into arrays.
#pragma once

#include "vec.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace {

FASTCTC_INLINE int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }
FASTCTC_INLINE int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

// Hands out 64-byte aligned pieces of the workspace; with a null base it only measures.
struct Carver {
  char* base;
  int64_t used = 0;

  template <class T>
  T* take(int64_t n) {
    char* p = base ? base + used : nullptr;
    const int64_t bytes = n * (int64_t)sizeof(T);
    used += (bytes + 63) / 64 * 64;
#if defined(__SANITIZE_ADDRESS__)
    // a gap that makes an access past the piece visible
    if (base) {
      ASAN_UNPOISON_MEMORY_REGION(p, bytes);
      ASAN_POISON_MEMORY_REGION(p + bytes, base + used + 64 - (p + bytes));
    }
    used += 64;
#endif
    return reinterpret_cast<T*>(p);
  }
};

}  // namespace
