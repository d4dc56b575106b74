// Forward and backward probabilities of one row (one utterance) of the batch, 16 frames at a time.
//
// The S labels of a target give S + 1 pairs of states: l_i, the i-th label (i = 1..S; l_0 is dead), and b_i, the blank
// after it (i = 0..S). Keeping the two kinds in arrays of their own leaves one lane shift per frame. With y the
// emissions and leave_i = [label_i != label_(i+1)]:
//   alpha:  b_i' = (b_i + l_i) y_blank         l_i' = (l_i + b_(i-1) + leave_(i-1) l_(i-1)) y_i
//   beta, before its own emission, primes one frame later and with theirs:
//           b_i = b_i' + l_(i+1)'              l_i = l_i' + b_i' + leave_i l_(i+1)'
// Frame -1 with b_0 = 1 and frame T with b_S = 1 are the start and the end.
#pragma once

#include "ctc_loss_kernel.h"
#include "simd/scaled.h"
#include "simd/storage.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace {

using fastctc::CtcUtterance;

// frames between two renormalisations, and in one step of the gradient
constexpr int kBlock = 16;
// up to this many classes, posteriors are summed per class for several frames at once
constexpr int64_t kDenseClasses = 128;

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

template <class S>
struct Lattice {
  using Scalar = typename S::Scalar;
  using Int = typename S::Int;
  static constexpr int W = S::W;

  int64_t width;           // S + 1 state pairs, rounded up to whole vectors
  int64_t blocks;          // of kBlock frames
  int64_t segment_blocks;  // alphas are kept for this many blocks; before each segment stands a checkpoint
  bool dense;

  // per pair i, width of each: the class to read its label emission from (the blank's at i = 0, whose label state is
  // dead: that slot of the emissions serves the blanks), and leave_i as a lane mask
  int32_t* label;
  Int* leave;
  // states of the current frame: width blanks, then width labels
  Scalar* alpha_m;
  Int* alpha_e;
  Scalar* beta_m;
  Int* beta_e;
  // per frame: what is subtracted from its scores, and the factor of exp(score - base) in the gradient
  Scalar* row_base;
  Scalar* row_scale;
  // emissions and label posteriors of one block (kBlock, width)
  Scalar* emission_m;
  Int* emission_e;
  Scalar* posterior;
  // label alphas of one segment (segment_blocks * kBlock, width), and the bits taken off their exponents, per block
  Scalar* kept_m;
  Int* kept_e;
  int64_t* block_bits;
  // alpha states before each segment (segments, 2 * width)
  Scalar* saved_m;
  Int* saved_e;
  // posterior sums (classes, W frames), or one row of the gradient in the compute type
  Scalar* class_sum;

  int64_t alpha_bits = 0;  // taken off the exponents of the current alpha states so far
  int64_t beta_bits = 0;

  int64_t segments() const { return (blocks + segment_blocks - 1) / segment_blocks; }

  int64_t lay_out(const CtcUtterance& u, void* workspace) {
    const bool want_grad = u.grad != nullptr;
    width = (u.S + W) / W * W;
    blocks = (u.T + kBlock - 1) / kBlock;
    dense = u.C <= kDenseClasses;
    const int64_t block_bytes = kBlock * width * (int64_t)(sizeof(Scalar) + sizeof(Int));
    segment_blocks = blocks;
    if (blocks * block_bytes > u.alpha_bytes) {
      segment_blocks = 1;
      while (segment_blocks * segment_blocks < blocks) ++segment_blocks;
    }
    Carver carve{static_cast<char*>(workspace)};
    label = carve.take<int32_t>(width);
    leave = carve.take<Int>(width);
    alpha_m = carve.take<Scalar>(2 * width);
    alpha_e = carve.take<Int>(2 * width);
    row_base = carve.take<Scalar>(blocks * kBlock);
    row_scale = carve.take<Scalar>(blocks * kBlock);
    emission_m = carve.take<Scalar>(kBlock * width);
    emission_e = carve.take<Int>(kBlock * width);
    if (want_grad) {
      beta_m = carve.take<Scalar>(2 * width);
      beta_e = carve.take<Int>(2 * width);
      posterior = carve.take<Scalar>(kBlock * width);
      kept_m = carve.take<Scalar>(segment_blocks * kBlock * width);
      kept_e = carve.take<Int>(segment_blocks * kBlock * width);
      block_bits = carve.take<int64_t>(blocks);
      saved_m = carve.take<Scalar>(segments() * 2 * width);
      saved_e = carve.take<Int>(segments() * 2 * width);
      class_sum = carve.take<Scalar>(dense ? at_least(u.C, W) * W : u.C);
    }
    return carve.used;
  }

  void start(const CtcUtterance& u) {
    for (int64_t i = 0; i < width; ++i) {
      const bool is_label = i >= 1 && i <= u.S;
      label[i] = (int32_t)(is_label ? u.labels[i - 1] : u.blank);
      leave[i] = i >= 1 && i < u.S && u.labels[i - 1] != u.labels[i] ? -1 : 0;
    }
    kill(alpha_m, alpha_e);
    alpha_e[0] = 0;
  }

  void kill(Scalar* m, Int* e) const {
    for (int64_t i = 0; i < 2 * width; ++i) {
      m[i] = 1;
      e[i] = kDead;
    }
  }

  // Vectors of pairs that can be reached by the end of the block and can still reach the end of the target from its
  // start: all others have no posterior.
  struct Band {
    int64_t first, end;
  };
  Band band(const CtcUtterance& u, int64_t block) const {
    const int64_t t0 = block * kBlock;
    return {at_least(0, u.S - u.T + t0) / W * W, at_most(u.S, t0 + kBlock) / W * W + W};
  }

  // Mantissas back into [1, 2) and exponents relative to the best state; returns the bits taken off.
  FASTCTC_INLINE int64_t renormalise(Scalar* m, Int* e, int64_t width, Band band) {
    using V = Scaled<S>;
    typename S::I best = S::set1i(kDead);
    for (int64_t half = 0; half < 2; ++half)
      for (int64_t i = half * width + band.first; i < half * width + band.end; i += W) {
        const V a = V::normalised(V::load(m + i, e + i));
        V::store(m + i, e + i, a);
        best = S::max(best, a.e);
      }
    Int bits = S::largest(best);
    if (bits < kAllDeadBelow) bits = 0;  // every path has met a class at -inf
    const typename S::I lowest = S::set1i(kDeadBelow), dead = S::set1i(kDead), taken = S::set1i(bits);
    for (int64_t half = 0; half < 2; ++half)
      for (int64_t i = half * width + band.first; i < half * width + band.end; i += W) {
        const typename S::I rest = S::load(e + i) - taken;
        S::store(e + i, S::select(S::less(rest, lowest), dead, rest));
      }
    return bits;
  }

  // One block of frames forward from the states of the frame before; with keep != null the label states go there.
  template <bool keep>
  void alpha_block(Band band, int64_t frames, Scalar* keep_m, Int* keep_e) {
    using V = Scaled<S>;
    Scalar* const FASTCTC_RESTRICT m = alpha_m;
    Int* const FASTCTC_RESTRICT e = alpha_e;
    const Scalar* FASTCTC_RESTRICT ym = emission_m;
    const Int* FASTCTC_RESTRICT ye = emission_e;
    for (int64_t f = 0; f < frames; ++f, ym += width, ye += width) {
      const V y_blank = {S::set1(ym[0]), S::set1i(ye[0])};
      V carry = V::dead();
      for (int64_t i = band.first; i < band.end; i += W) {
        const V b = V::load(m + i, e + i), l = V::load(m + width + i, e + width + i);
        const V stay = V::add(b, l);
        const V leaving = V::select(S::load(leave + i), stay, b);
        const V entering = V::shift_up(leaving, carry);
        carry = leaving;
        const V next = V::multiply(V::add(l, entering), V::load(ym + i, ye + i));
        V::store(m + i, e + i, V::multiply(stay, y_blank));
        V::store(m + width + i, e + width + i, next);
        if constexpr (keep) V::store(keep_m + f * width + i, keep_e + f * width + i, next);
      }
    }
    alpha_bits += renormalise(alpha_m, alpha_e, width, band);
  }

  // ln of the probability that all frames emit the target, with the mantissa and exponent it came from
  double log_probability(const CtcUtterance& u, double* mantissa, int64_t* exponent) const {
    const Int b = alpha_e[u.S], l = alpha_e[width + u.S], best = b > l ? b : l;
    const double sum = (double)alpha_m[u.S] * __builtin_ldexp(1.0, (int)at_least(b - best, -2000)) +
                       (double)alpha_m[width + u.S] * __builtin_ldexp(1.0, (int)at_least(l - best, -2000));
    *mantissa = sum;
    *exponent = best + alpha_bits;
    if (best < kDeadBelow) return -__builtin_inf();
    return __builtin_log(sum) + (double)*exponent * 0.69314718055994530942;
  }

  void start_beta(const CtcUtterance& u, double mantissa) {
    kill(beta_m, beta_e);
    // dividing by the total here makes every alpha * beta a posterior
    beta_m[u.S] = (Scalar)(1 / mantissa);
    beta_e[u.S] = 0;
    beta_bits = 0;
  }

  // One block of frames backward; label posteriors of frame f of the block go to posterior + f * width.
  void beta_block(Band band, int64_t frames, const Scalar* kept_block_m, const Int* kept_block_e, int64_t bits) {
    using V = Scaled<S>;
    Scalar* const FASTCTC_RESTRICT m = beta_m;
    Int* const FASTCTC_RESTRICT e = beta_e;
    const typename S::I offset = S::set1i((Int)at_most(at_least(bits, -(1 << 29)), 1 << 29));
    for (int64_t f = frames - 1; f >= 0; --f) {
      const Scalar* FASTCTC_RESTRICT ym = emission_m + f * width;
      const Int* FASTCTC_RESTRICT ye = emission_e + f * width;
      const Scalar* FASTCTC_RESTRICT am = kept_block_m + f * width;
      const Int* FASTCTC_RESTRICT ae = kept_block_e + f * width;
      Scalar* FASTCTC_RESTRICT out = posterior + f * width;
      const V y_blank = {S::set1(ym[0]), S::set1i(ye[0])};
      V l = V::load(m + width + band.first, e + width + band.first);
      for (int64_t i = band.first; i < band.end; i += W) {
        const V l_after = i + W < band.end ? V::load(m + width + i + W, e + width + i + W) : V::dead();
        const V b = V::load(m + i, e + i);
        const V b_new = V::add(b, V::shift_down(l, l_after));
        const V l_new = V::add(l, V::select(S::load(leave + i), b_new, b));
        l = l_after;
        S::store(out + i, V::value(S::load(am + i) * l_new.m, S::load(ae + i) + l_new.e + offset));
        V::store(m + i, e + i, V::multiply(b_new, y_blank));
        V::store(m + width + i, e + width + i, V::multiply(l_new, V::load(ym + i, ye + i)));
      }
    }
    beta_bits += renormalise(beta_m, beta_e, width, band);
  }
};

}  // namespace
