// What is done to whole rows of scores: softmax statistics, emissions of the target's labels, and the gradient.
#pragma once

#include "ctc_loss_lattice.h"
#include "simd/rows.h"

namespace {

// Row maximum and sum of exp(score - maximum) of frames t0 .. t0 + frames; returns the sum of the logs of those sums.
template <class S, class X>
double softmax_statistics(Lattice<S>& lattice, const CtcUtterance& u, int64_t t0, int64_t frames) {
  using Scalar = typename S::Scalar;
  constexpr int W = S::W;
  double product = 1;
  for (int64_t g = 0; g < frames; g += W) {
    const int64_t count = at_most(W, frames - g);
    const X* const first = static_cast<const X*>(u.scores) + (t0 + g) * u.scores_stride;
    Scalar base[W], sum[W], tail[W];
    softmax_sums<S>(first, u.scores_stride, count, u.C, base, sum, tail);
    for (int64_t i = 0; i < count; ++i) {
      lattice.row_base[t0 + g + i] = base[i];
      lattice.row_scale[t0 + g + i] = (Scalar)(u.grad_scale / sum[i]);
      product *= precise_sum(base[i], sum[i], tail[i]);
    }
  }
  return FASTCTC_MATH(log)(product);
}

// The same for log-probabilities, which are not normalised: they are only taken relative to their maximum, so that a
// sure model's best path is a product of exact ones and its loss the sum of what is returned, minus the maxima.
template <class S, class X>
double log_probability_statistics(Lattice<S>& lattice, const CtcUtterance& u, int64_t t0, int64_t frames) {
  using Scalar = typename S::Scalar;
  constexpr int W = S::W;
  double total = 0;
  for (int64_t g = 0; g < frames; g += W) {
    const int64_t count = at_most(W, frames - g);
    Scalar base[W];
    row_maxima<true, S>(static_cast<const X*>(u.scores) + (t0 + g) * u.scores_stride, u.scores_stride, count, u.C,
                        base);
    for (int64_t i = 0; i < count; ++i) {
      if (base[i] == -(Scalar)infinity()) base[i] = 0;
      lattice.row_base[t0 + g + i] = base[i];
      lattice.gradient_base[t0 + g + i] = 0;
      lattice.row_scale[t0 + g + i] = (Scalar)u.grad_scale;
      total -= base[i];
    }
  }
  return total;
}

// Emissions of one frame, pair by pair, each read from its own place in the row. Returns lanes of 0, or NaN where a
// score is NaN.
template <class S, class X>
FASTCTC_INLINE typename S::F emit_pairs(const Lattice<S>& lattice, typename Lattice<S>::Band band, const X* row,
                                        typename S::Scalar base, typename S::Scalar* m, typename Lattice<S>::Exp* e) {
  constexpr int W = S::W;
  const int32_t* const label = lattice.label;
  typename S::F watch = S::set1(0);
  // the first vector holds the blank
  for (int64_t i = 0; i < band.end; i = i < band.first ? band.first : i + W) {
    typename S::Scalar scores[W];
    for (int k = 0; k < W; ++k) scores[k] = to_scalar(row[label[i + k]]);
    const Scaled<S> y = emission<S>(S::load(scores), base);
    watch = watch + (y.m - y.m);
    Scaled<S>::store(m + i, e + i, y);
  }
  return watch;
}

// Emissions of one frame, class by class: each is exponentiated once, however often it occurs in the target. What the
// table holds past the last class is never looked up. Returns as above.
template <class S, class X>
FASTCTC_INLINE typename S::F emit_classes(const X* row, int64_t C, typename S::Scalar base, typename S::Scalar* m,
                                          typename Lattice<S>::Exp* e) {
  typename S::F watch = S::set1(0);
  for (int64_t c = 0; c < C; c += S::W) {
    const Scaled<S> y = emission<S>(C - c >= S::W ? load_as<S>(row + c) : load_part<S>(row + c, C - c, 0), base);
    watch = watch + (y.m - y.m);
    Scaled<S>::store(m + c, e + c, y);
  }
  return watch;
}

// Whether a score of frame t that a path can read is NaN or +inf.
template <class S, class X>
bool reads_nan(const Lattice<S>& lattice, const CtcUtterance& u, int64_t t, const X* row) {
  const typename S::Scalar limit = (typename S::Scalar)infinity();
  if (u.T > u.S && !(to_scalar(row[u.blank]) < limit)) return true;
  for (int64_t i = at_least(1, u.S - (u.T - 1 - t)); i <= at_most(u.S, t + 1); ++i)
    if (!(to_scalar(row[lattice.label[i]]) < limit)) return true;
  return false;
}

// Emissions of one block of frames. Returns whether all that a path can read are numbers; what no path reads may be NaN
// and is put to -inf, lest it spread from lanes that have no meaning.
template <class S, class X>
bool emit(Lattice<S>& lattice, const CtcUtterance& u, int64_t block, typename Lattice<S>::Band band, int64_t frames) {
  const X* const rows = static_cast<const X*>(u.scores) + block * kBlock * u.scores_stride;
  typename S::F watch = S::set1(0);
  for (int64_t f = 0; f < frames; ++f) {
    const X* row = rows + f * u.scores_stride;
    const typename S::Scalar base = lattice.row_base[block * kBlock + f];
    auto* m = lattice.emission_m + lattice.emission_at(block, f);
    auto* e = lattice.emission_e + lattice.emission_at(block, f);
    if (lattice.table_vectors)
      watch = watch + emit_classes<S>(row, u.C, base, m, e);
    else
      watch = watch + emit_pairs<S>(lattice, band, row, base, m, e);
  }
  const typename S::Scalar sum = S::sum(watch);
  if (sum == sum) return true;
  for (int64_t f = 0; f < frames; ++f) {
    if (reads_nan(lattice, u, block * kBlock + f, rows + f * u.scores_stride)) return false;
    auto* m = lattice.emission_m + lattice.emission_at(block, f);
    auto* e = lattice.emission_e + lattice.emission_at(block, f);
    for (int64_t i = 0; i < lattice.emission_width; ++i)
      if (m[i] != m[i]) {
        m[i] = 1;
        e[i] = Limits<typename S::Scalar>::kDeadEmission;
      }
  }
  return true;
}

// One vector of the gradient: scale * exp(score - base) - posterior, or -posterior alone.
template <class S>
FASTCTC_INLINE typename S::F gradient(bool subtract_only, typename S::Scalar base, typename S::Scalar scale,
                                      typename S::F x, typename S::F posterior) {
  if (subtract_only) return S::set1(0) - posterior;
  return exp_value<S>(x - S::set1(base)) * S::set1(scale) - posterior;
}

// Few classes: transposed, so that one vector addition carries a label's posteriors of W frames into its class.
template <class S, class X>
void dense_gradient(Lattice<S>& lattice, const CtcUtterance& u, typename Lattice<S>::Band band, int64_t t0,
                    int64_t frames) {
  using F = typename S::F;
  using Scalar = typename S::Scalar;
  constexpr int W = S::W;
  const int64_t C = u.C;
  const F grad_scale = S::set1((Scalar)u.grad_scale);
  Scalar* const sums = lattice.class_sum;
  for (int64_t g = 0; g < frames; g += W) {
    const int64_t count = at_most(W, frames - g);
    for (int64_t i = 0; i < at_least(C, W) * W; i += W) S::store(sums + i, S::set1(0));
    F of_labels = S::set1(0), r[W];
    for (int64_t i = band.first; i < band.end; i += W) {
      for (int f = 0; f < W; ++f)
        r[f] = f < count ? S::load(lattice.posterior + (g + f) * lattice.width + i) : S::set1(0);
      S::transpose(r);
      for (int k = 0; k < W; ++k) {
        Scalar* sum = sums + (int64_t)lattice.label[i + k] * W;
        S::store(sum, S::load(sum) + r[k]);
        of_labels = of_labels + r[k];
      }
    }
    Scalar* blank = sums + u.blank * W;
    S::store(blank, S::load(blank) + S::at_least(S::set1(0), S::set1(1) - of_labels));
    const X* const scores = static_cast<const X*>(u.scores) + (t0 + g) * u.scores_stride;
    X* const out = static_cast<X*>(u.grad) + (t0 + g) * u.grad_stride;
    const Scalar* const base = lattice.gradient_base + t0 + g;
    const Scalar* const scale = lattice.row_scale + t0 + g;
    const int64_t scores_stride = u.scores_stride, out_stride = u.grad_stride;
    const bool subtract_only = u.subtract_only;
    for (int64_t c = 0; c < C; c += W) {
      const int64_t first = c + W <= C ? c : at_least(C - W, 0);
      for (int k = 0; k < W; ++k) r[k] = S::load(sums + (first + k) * W) * grad_scale;
      S::transpose(r);
      const X* x = scores + first;
      X* to = out + first;
      for (int64_t f = 0; f < count; ++f, x += scores_stride, to += out_stride) {
        if (C >= W)
          store_as<S>(to, gradient<S>(subtract_only, base[f], scale[f], load_as<S>(x), r[f]));
        else
          store_part<S>(to, C, gradient<S>(subtract_only, base[f], scale[f], load_part<S>(x, C, 0), r[f]));
      }
    }
  }
}

// Many classes: the row is made in one piece, then the target's classes are corrected label by label, in order. Where
// the result is not rounded, and need not get past the caches, it is made in its place.
template <class S, class X>
void sparse_gradient(Lattice<S>& lattice, const CtcUtterance& u, typename Lattice<S>::Band band, int64_t t0,
                     int64_t frames) {
  using Scalar = typename S::Scalar;
  const Scalar grad_scale = (Scalar)u.grad_scale;
  const bool subtract_only = u.subtract_only;
  const int64_t first = at_least(1, band.first), last = at_most(u.S, band.end - 1);
  for (int64_t f = 0; f < frames; ++f) {
    const int64_t t = t0 + f;
    X* const out = static_cast<X*>(u.grad) + t * u.grad_stride;
    Scalar* made = lattice.class_sum;
    bool in_place = false;
    if constexpr (sizeof(X) == sizeof(Scalar)) {
      in_place = !u.stream_grad;
      if (in_place) made = out;
    }
    const Scalar base = lattice.gradient_base[t], scale = lattice.row_scale[t];
    const X* row = static_cast<const X*>(u.scores) + t * u.scores_stride;
    for_each_vector<S>(row, u.C, [=](int64_t c, typename S::F x, int64_t) {
      S::store(made + c, gradient<S>(subtract_only, base, scale, x, S::set1(0)));
    });
    const Scalar* posterior = lattice.posterior + f * lattice.width;
    Scalar of_labels = 0;
    for (int64_t i = first; i <= last; ++i) {
      made[lattice.label[i]] -= posterior[i] * grad_scale;
      of_labels += posterior[i];
    }
    if (of_labels < 1) made[u.blank] -= (1 - of_labels) * grad_scale;
    if (!in_place) write_row<S>(out, made, u.C, u.stream_grad);
  }
}

}  // namespace
