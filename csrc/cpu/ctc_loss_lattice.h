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
#include "simd/carver.h"
#include "simd/scaled.h"
#include "simd/storage.h"

namespace {

using fastctc::CtcUtterance;

// frames between two renormalisations, and in one step of the gradient
constexpr int kBlock = 16;
// up to this many classes, and not too many beside the labels, posteriors are summed per class for several frames at
// once
constexpr int64_t kDenseClasses = 128;
constexpr int64_t kCachedEmissionBytes = 256 << 10;

template <class S>
struct Lattice {
  using Scalar = typename S::Scalar;
  using Int = typename S::Int;
  using Exponent = typename Scaled<S>::Exponent;
  using Exp = typename Exponent::Scalar;
  static constexpr int W = S::W;

  int64_t width;           // S + 1 state pairs, rounded up to whole vectors
  int64_t blocks;          // of kBlock frames
  int64_t segment_blocks;  // alphas are kept for this many blocks; before each segment stands a checkpoint
  bool dense;

  // per pair i, width of each: the class to read its label emission from (the blank's at i = 0, whose label state is
  // dead: that slot of the emissions serves the blanks), and leave_i as a lane mask
  int32_t* label;
  Int* leave;
  // states of the current frame: width blanks, then width labels; for beta one more vector that stays dead
  Scalar* alpha_m;
  Exp* alpha_e;
  Scalar* beta_m;
  Exp* beta_e;
  // per frame: what its scores are taken relative to in the lattice (their maximum) and in the gradient (0 for
  // log-probabilities), and the factor of exp(score - gradient_base) there
  Scalar* row_base;
  Scalar* gradient_base;
  Scalar* row_scale;
  // Emissions of the last emission_blocks blocks (kBlock, emission_width each): with table_vectors = 0 one per pair,
  // else one per class, the whole row in that many vectors, looked up lane by lane.
  int64_t emission_blocks;
  int64_t emission_width;
  int table_vectors;
  Scalar* emission_m;
  Exp* emission_e;
  // label posteriors of one block (kBlock, width)
  Scalar* posterior;
  // label alphas of one segment (segment_blocks * kBlock, width), and the bits taken off their exponents, per block
  Scalar* kept_m;
  Exp* kept_e;
  int64_t* block_bits;
  // alpha states before each segment (segments, 2 * width)
  Scalar* saved_m;
  Exp* saved_e;
  // posterior sums (classes, W frames), or one row of the gradient in the compute type
  Scalar* class_sum;

  int64_t alpha_bits = 0;  // taken off the exponents of the current alpha states so far
  int64_t beta_bits = 0;

  int64_t emission_at(int64_t block, int64_t frame) const {
    return (block % emission_blocks * kBlock + frame) * emission_width;
  }
  int64_t segments() const { return (blocks + segment_blocks - 1) / segment_blocks; }

  int64_t lay_out(const CtcUtterance& u, void* workspace) {
    const bool want_grad = u.grad != nullptr;
    width = (u.S + W) / W * W;
    blocks = (u.T + kBlock - 1) / kBlock;
    dense = u.C <= kDenseClasses && u.C <= 4 * width;
    const int64_t block_bytes = kBlock * width * (int64_t)(sizeof(Scalar) + sizeof(Exp));
    segment_blocks = blocks;
    if (blocks * block_bytes > u.alpha_bytes) {
      segment_blocks = 1;
      while (segment_blocks * segment_blocks < blocks) ++segment_blocks;
    }
    table_vectors = tables_for(u.C, width);
    emission_width = table_vectors ? table_vectors * W : width;
    const int64_t emission_bytes = blocks * kBlock * emission_width * (int64_t)(sizeof(Scalar) + sizeof(Exp));
    // short rows keep all their emissions from the forward to the backward pass, as long as they stay in the cache
    emission_blocks = want_grad && emission_bytes <= kCachedEmissionBytes ? blocks : 1;
    Carver carve{static_cast<char*>(workspace)};
    label = carve.take<int32_t>(width);
    leave = carve.take<Int>(width);
    alpha_m = carve.take<Scalar>(2 * width);
    alpha_e = carve.take<Exp>(2 * width);
    row_base = carve.take<Scalar>(blocks * kBlock);
    gradient_base = u.from_logits ? row_base : carve.take<Scalar>(blocks * kBlock);
    row_scale = carve.take<Scalar>(blocks * kBlock);
    emission_m = carve.take<Scalar>(emission_blocks * kBlock * emission_width);
    emission_e = carve.take<Exp>(emission_blocks * kBlock * emission_width);
    if (want_grad) {
      beta_m = carve.take<Scalar>(2 * width + W);
      beta_e = carve.take<Exp>(2 * width + W);
      posterior = carve.take<Scalar>(kBlock * width);
      kept_m = carve.take<Scalar>(segment_blocks * kBlock * width);
      kept_e = carve.take<Exp>(segment_blocks * kBlock * width);
      block_bits = carve.take<int64_t>(blocks);
      saved_m = carve.take<Scalar>((segments() - 1) * 2 * width);
      saved_e = carve.take<Exp>((segments() - 1) * 2 * width);
      class_sum = carve.take<Scalar>(dense ? at_least(u.C, W) * W : u.C);
    }
    return carve.used;
  }

  // A class costs about half as much to exponentiate as a pair does to gather and exponentiate.
  static int tables_for(int64_t C, int64_t width) {
    const int64_t vectors = (C + W - 1) / W;
    if (vectors > S::kTableVectors || vectors > 2 * (width / W)) return 0;
    return vectors <= 2 ? (int)vectors : vectors <= 4 ? 4 : 8;
  }

  void start(const CtcUtterance& u) {
    for (int64_t i = 0; i < width; ++i) {
      const bool is_label = i >= 1 && i <= u.S;
      label[i] = (int32_t)(is_label ? u.labels[i - 1] : u.blank);
      leave[i] = i >= 1 && i < u.S && u.labels[i - 1] != u.labels[i] ? -1 : 0;
    }
    kill(alpha_m, alpha_e, 2 * width);
    alpha_e[0] = 0;
  }

  static void kill(Scalar* m, Exp* e, int64_t states) {
    for (int64_t i = 0; i < states; i += W) Scaled<S>::store(m + i, e + i, Scaled<S>::dead());
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
  FASTCTC_INLINE int64_t renormalise(Scalar* m, Exp* e, int64_t width, Band band) {
    using V = Scaled<S>;
    typename V::E best = Exponent::set1(Limits<Scalar>::kDead);
    for (int64_t half = 0; half < 2; ++half)
      for (int64_t i = half * width + band.first; i < half * width + band.end; i += W) {
        const V a = V::normalised(V::load(m + i, e + i));
        V::store(m + i, e + i, a);
        best = S::max(best, a.e);
      }
    Exp bits = S::largest(best);
    if (bits < Limits<Scalar>::kAllDeadBelow) bits = 0;  // every path has met a class at -inf
    const typename V::E lowest = Exponent::set1(Limits<Scalar>::kDeadBelow),
                        dead = Exponent::set1(Limits<Scalar>::kDead), taken = Exponent::set1(bits);
    for (int64_t half = 0; half < 2; ++half)
      for (int64_t i = half * width + band.first; i < half * width + band.end; i += W) {
        const typename V::E rest = S::load(e + i) - taken;
        S::store(e + i, S::select(S::less(rest, lowest), dead, rest));
      }
    return (int64_t)bits;
  }

  // Emissions of one frame, and of its vector of pairs from i on.
  template <int tables>
  struct Emissions {
    using V = Scaled<S>;
    const Scalar* m;
    const Exp* e;
    typename S::F table_m[tables ? tables : 1];
    typename V::E table_e[tables ? tables : 1];

    FASTCTC_INLINE Emissions of(const Scalar* m, const Exp* e) {
      Emissions y;
      y.m = m;
      y.e = e;
      for (int v = 0; v < tables; ++v) {
        y.table_m[v] = S::load(m + v * W);
        y.table_e[v] = S::load(e + v * W);
      }
      return y;
    }
    FASTCTC_INLINE_MEMBER V at(const int32_t* label, int64_t i) const {
      if constexpr (tables == 0) {
        (void)label;
        return V::load(m + i, e + i);
      } else {
        const typename S::I index = S::load((const Int*)label + i);
        return {S::template look_up<tables>(table_m, index), S::template look_up<tables>(table_e, index)};
      }
    }
  };

  // One block of frames forward from the states of the frame before; with keep the label states go to keep_m and
  // keep_e. blank_at: where a frame's emissions hold the blank's.
  template <int tables, bool keep>
  void alpha_block(int64_t block, int64_t blank_at, Band band, int64_t frames, Scalar* keep_m, Exp* keep_e) {
    using V = Scaled<S>;
    const int64_t width = this->width, emission_width = this->emission_width, first = band.first, end = band.end;
    const int32_t* const label = this->label;
    const Int* const leave = this->leave;
    Scalar* const m = alpha_m;
    Exp* const e = alpha_e;
    const Scalar* ym = emission_m + emission_at(block, 0);
    const Exp* ye = emission_e + emission_at(block, 0);
    for (int64_t f = 0; f < frames; ++f, ym += emission_width, ye += emission_width) {
      const auto y = Emissions<tables>::of(ym, ye);
      const V y_blank = {S::set1(ym[blank_at]), Exponent::set1(ye[blank_at])};
      V carry = V::dead();
      for (int64_t i = first; i < end; i += W) {
        const V b = V::load(m + i, e + i), l = V::load(m + width + i, e + width + i);
        const V stay = V::add(b, l);
        const V leaving = V::select(S::load(leave + i), stay, b);
        const V entering = V::shift_up(leaving, carry);
        carry = leaving;
        const V next = V::multiply(V::add(l, entering), y.at(label, i));
        V::store(m + i, e + i, V::multiply(stay, y_blank));
        V::store(m + width + i, e + width + i, next);
        if constexpr (keep) V::store(keep_m + i, keep_e + i, next);
      }
      if constexpr (keep) {
        keep_m += width;
        keep_e += width;
      }
    }
    alpha_bits += renormalise(m, e, width, band);
  }

  // ln of the probability that all frames emit the target, with the mantissa and exponent it came from
  double log_probability(const CtcUtterance& u, double* mantissa, int64_t* exponent) const {
    const int64_t b = (int64_t)alpha_e[u.S], l = (int64_t)alpha_e[width + u.S], best = b > l ? b : l;
    const double sum = (double)alpha_m[u.S] * FASTCTC_MATH(ldexp)(1.0, (int)at_least(b - best, -2000)) +
                       (double)alpha_m[width + u.S] * FASTCTC_MATH(ldexp)(1.0, (int)at_least(l - best, -2000));
    *mantissa = sum;
    *exponent = best + alpha_bits;
    if (best < Limits<Scalar>::kDeadBelow) return -infinity();
    return FASTCTC_MATH(log)(sum) + (double)*exponent * 0.69314718055994530942;
  }

  void start_beta(const CtcUtterance& u, double mantissa) {
    kill(beta_m, beta_e, 2 * width + W);
    // dividing by the total here makes every alpha * beta a posterior
    beta_m[u.S] = (Scalar)(1 / mantissa);
    beta_e[u.S] = 0;
    beta_bits = 0;
  }

  // One block of frames backward; label posteriors of frame f of the block go to posterior + f * width.
  template <int tables>
  void beta_block(int64_t block, int64_t blank_at, Band band, int64_t frames, const Scalar* kept_block_m,
                  const Exp* kept_block_e, int64_t bits) {
    using V = Scaled<S>;
    const int64_t width = this->width, first = band.first, end = band.end;
    const int32_t* const label = this->label;
    const Int* const leave = this->leave;
    Scalar* const m = beta_m;
    Exp* const e = beta_e;
    // the states above the band hold later frames; nothing in it comes from them
    V::store(m + width + end, e + width + end, V::dead());
    const typename V::E offset =
        Exponent::set1((Exp)at_most(at_least(bits, -Limits<Scalar>::kOffset), Limits<Scalar>::kOffset));
    for (int64_t f = frames - 1; f >= 0; --f) {
      const Scalar* ym = emission_m + emission_at(block, f);
      const Exp* ye = emission_e + emission_at(block, f);
      const Scalar* am = kept_block_m + f * width;
      const Exp* ae = kept_block_e + f * width;
      Scalar* out = posterior + f * width;
      const auto y = Emissions<tables>::of(ym, ye);
      const V y_blank = {S::set1(ym[blank_at]), Exponent::set1(ye[blank_at])};
      V l = V::load(m + width + first, e + width + first);
      for (int64_t i = first; i < end; i += W) {
        const V l_after = V::load(m + width + i + W, e + width + i + W);
        const V b = V::load(m + i, e + i);
        const V b_new = V::add(b, V::shift_down(l, l_after));
        const V l_new = V::add(l, V::select(S::load(leave + i), b_new, b));
        l = l_after;
        S::store(out + i, V::value(S::load(am + i) * l_new.m, S::load(ae + i) + l_new.e + offset));
        V::store(m + i, e + i, V::multiply(b_new, y_blank));
        V::store(m + width + i, e + width + i, V::multiply(l_new, y.at(label, i)));
      }
    }
    beta_bits += renormalise(m, e, width, band);
  }
};

}  // namespace
