// Selection and order: the k-th largest of many numbers in vectors, and heaps for the few that need an order.
#pragma once

#include "simd/lanes.h"

namespace {

// The k-th largest (from 1) of n numbers. Quickselect with the median of three as pivot: every round keeps
// one side, packed. `scratch` holds n + W; `from` is left as it is, and may be read up to W past n.
template <class S>
typename S::Scalar kth_largest(const typename S::Scalar* from, int64_t n, int64_t k, typename S::Scalar* scratch) {
  using F = typename S::F;
  using Scalar = typename S::Scalar;
  using Sets = LaneSets<S>;
  constexpr int W = S::W;
  while (n > W) {
    const Scalar a = from[n / 4], b = from[n / 2], c = from[n / 2 + n / 4];
    const Scalar low = a < b ? a : b, high = a < b ? b : a;
    const Scalar pivot = c < low ? low : (c < high ? c : high);
    const F p = S::set1(pivot);
    int64_t greater = 0, not_below = 0;
    for (int64_t i = 0; i < n; i += W) {
      const uint32_t there = Sets::first(n - i);
      const F x = S::load(from + i);
      greater += count_bits(Sets::above(x, p) & there);
      not_below += count_bits(Sets::not_below(x, p) & there);
    }
    if (greater < k && k <= not_below) return pivot;
    const bool up = k <= greater;
    int64_t kept = 0;
    for (int64_t i = 0; i < n; i += W) {
      const uint32_t there = Sets::first(n - i);
      const F x = S::load(from + i);
      kept += Sets::pack(scratch + kept, x, there & (up ? Sets::above(x, p) : ~Sets::not_below(x, p)));
    }
    if (!up) k -= not_below;
    n = kept;
    from = scratch;  // from here on in place: packing writes no further than has been read
  }
  // one vector is left: the one that has fewer than k above it, and with its equals at least k
  const uint32_t there = Sets::first(n);
  const F x = S::load(from);
  int64_t i = 0;
  for (; i + 1 < n; ++i) {
    const F p = S::set1(from[i]);
    if (count_bits(Sets::above(x, p) & there) < k && k <= count_bits(Sets::not_below(x, p) & there)) break;
  }
  return from[i];
}

// before(a, b): a comes before b. The heap's top is the one that comes last.
template <class T, class Before>
FASTCTC_INLINE void sift_down(T* heap, int64_t n, int64_t at, Before before) {
  const T moving = heap[at];
  for (int64_t child; (child = 2 * at + 1) < n; at = child) {
    if (child + 1 < n && before(heap[child], heap[child + 1])) ++child;
    if (!before(moving, heap[child])) break;
    heap[at] = heap[child];
  }
  heap[at] = moving;
}

// Brings the first k of n items in front, in no order.
template <class T, class Before>
FASTCTC_INLINE void bring_first(T* items, int64_t n, int64_t k, Before before) {
  if (k <= 0) return;
  for (int64_t i = k / 2 - 1; i >= 0; --i) sift_down(items, k, i, before);
  for (int64_t i = k; i < n; ++i) {
    if (!before(items[i], items[0])) continue;
    const T last = items[0];
    items[0] = items[i];
    items[i] = last;
    sift_down(items, k, 0, before);
  }
}

template <class T, class Before>
FASTCTC_INLINE void sort(T* items, int64_t n, Before before) {
  constexpr int64_t kFew = 24;
  if (n <= kFew) {
    for (int64_t i = 1; i < n; ++i) {
      const T x = items[i];
      int64_t at = i;
      for (; at > 0 && before(x, items[at - 1]); --at) items[at] = items[at - 1];
      items[at] = x;
    }
    return;
  }
  for (int64_t i = n / 2 - 1; i >= 0; --i) sift_down(items, n, i, before);
  for (int64_t left = n - 1; left > 0; --left) {
    const T last = items[0];
    items[0] = items[left];
    items[left] = last;
    sift_down(items, left, 0, before);
  }
}

}  // namespace
