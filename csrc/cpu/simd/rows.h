// What kernels do to whole rows of scores: walk them in vectors, find their maxima and softmax sums.
#pragma once

#include "scaled.h"
#include "storage.h"

namespace {

// Calls body(first class, scores, lanes not seen before) for every vector of a row of C classes. A last, partial vector
// is moved back to end at C; only rows shorter than one vector are padded, with -inf.
template <class S, class X, class Body>
FASTCTC_INLINE void for_each_vector(const X* row, int64_t C, Body body) {
  constexpr int W = S::W;
  if (C < W) {
    body(int64_t(0), load_part<S>(row, C, -(typename S::Scalar)infinity()), int64_t(W));
    return;
  }
  int64_t c = 0;
  for (; c + W <= C; c += W) body(c, load_as<S>(row + c), int64_t(W));
  if (c < C) body(C - W, load_as<S>(row + C - W), C - c);
}

// W lanes of 0, then W lanes of all bits: read from entry n on, they select the top n lanes.
template <class Int>
struct LaneMasks {
  static constexpr Int bits[32] = {0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,
                                   -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
};

template <class S>
FASTCTC_INLINE typename S::F top_lanes(typename S::F x, int64_t count) {
  if (count == S::W) return x;
  const typename S::Int* middle = LaneMasks<typename S::Int>::bits + 16;
  return S::select(S::load(middle - (S::W - count)), x, S::set1(0));
}

// The rows of neighbouring frames lie a whole batch apart, too far for the processor to see them coming. Long rows it
// follows by itself.
constexpr int64_t kPrefetchBytes = 512;

template <class X, bool to_write>
FASTCTC_INLINE void prefetch_rows(const void* rows, int64_t stride, int64_t count, int64_t C) {
#if defined(__GNUC__)
  const char* row = static_cast<const char*>(rows);
  const int64_t bytes = C * (int64_t)sizeof(X);
  if (bytes > kPrefetchBytes) return;
  for (int64_t r = 0; r < count; ++r, row += stride * (int64_t)sizeof(X))
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(row + at, to_write, 3);
#else
  (void)rows, (void)stride, (void)count, (void)C;
#endif
}

// Maxima of `count` <= W rows, NaN passed over; with finite_only +inf as well.
template <bool finite_only, class S, class X>
FASTCTC_INLINE void row_maxima(const X* rows, int64_t stride, int64_t count, int64_t C, typename S::Scalar* maxima) {
  using F = typename S::F;
  const F none = S::set1(-(typename S::Scalar)infinity()), limit = S::set1((typename S::Scalar)infinity());
  F best[S::W];
  for (int i = 0; i < S::W; ++i) best[i] = none;
  for (int64_t i = 0; i < count; ++i) {
    F row = none;
    for_each_vector<S>(rows + i * stride, C, [&](int64_t, F x, int64_t) {
      row = S::at_least(finite_only ? S::select(S::less(x, limit), x, none) : x, row);
    });
    best[i] = row;
  }
  S::store(maxima, S::reduce_rows(best, [](F a, F b) { return S::at_least(a, b); }));
}

// Of `count` <= W rows the maximum, the sum of exp(score - maximum), and that sum over what is below the maximum. A
// trained model's sums are 1 and a tail far below float's resolution at 1, and that tail is the loss: so it is summed
// by itself as well.
template <class S, class X>
FASTCTC_INLINE void softmax_sums(const X* rows, int64_t stride, int64_t count, int64_t C, typename S::Scalar* base,
                                 typename S::Scalar* sum, typename S::Scalar* tail) {
  using F = typename S::F;
  constexpr int W = S::W;
  row_maxima<false, S>(rows, stride, count, C, base);
  F sums[W], tails[W];
  for (int i = 0; i < W; ++i) sums[i] = tails[i] = S::set1(0);
  for (int64_t i = 0; i < count; ++i) {
    const F top = S::set1(base[i]);
    F total = S::set1(0), below = S::set1(0);
    for_each_vector<S>(rows + i * stride, C, [&](int64_t, F x, int64_t fresh) {
      const F p = top_lanes<S>(exp_value<S>(x - top), fresh);
      total = total + p;
      below = below + S::select(S::less(x, top), p, S::set1(0));
    });
    sums[i] = total;
    tails[i] = below;
  }
  const auto plus = [](F a, F b) { return a + b; };
  S::store(sum, S::reduce_rows(sums, plus));
  S::store(tail, S::reduce_rows(tails, plus));
}

// A row's softmax sum with the tail in double: how often the maximum occurs, and the tail. A maximum of +-inf makes
// NaN.
template <class Scalar>
FASTCTC_INLINE double precise_sum(Scalar base, Scalar sum, Scalar tail) {
  return FASTCTC_MATH(rint)((double)sum - tail) + tail + (base - base);
}

}  // namespace
