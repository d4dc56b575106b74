// Numbers as mantissa * 2^exponent, each lane with its own integer exponent: the lattice multiplies thousands of
// probabilities, and no single scale per frame holds both the best path and the one that turns out to survive.
// Mantissas stay within [2^-8, 2^60) between two renormalisations (16 frames), so one mantissa product is finite.
#pragma once

#include "vec.h"

namespace {

// Exponents, in bits relative to the best state of the block of frames before. No emission is above its frame's base,
// so none raises them.
//   An emission more than kEmission bits (float: 181,704 nats) below its frame's base counts as -inf: kDeadEmission.
//   A state below kDeadBelow counts as impossible and is put to kDead.
// 16 frames of legitimate emissions cost at most 2^22 bits (in float) and so never reach kDeadBelow, one dead emission
// always does, and two dead states with 16 dead emissions each still add up without wrapping an int32.
template <class Scalar>
struct Limits;

template <>
struct Limits<float> {
  static constexpr int kEmission = 1 << 18;
  static constexpr int kDeadEmission = -(1 << 24);
  static constexpr int kDeadBelow = -(1 << 23);
  static constexpr int kAllDeadBelow = -(1 << 24) + (1 << 21);
  static constexpr int kDead = -(1 << 27);
  static constexpr int kOffset = 1 << 29;
};

template <>
struct Limits<double> {
  static constexpr int64_t kEmission = int64_t(1) << 30;
  static constexpr int64_t kDeadEmission = -(int64_t(1) << 36);
  static constexpr int64_t kDeadBelow = -(int64_t(1) << 35);
  static constexpr int64_t kAllDeadBelow = -(int64_t(1) << 36) + (int64_t(1) << 33);
  static constexpr int64_t kDead = -(int64_t(1) << 40);
  static constexpr int64_t kOffset = int64_t(1) << 45;
};

// AVX-512 scales a float by a power of two given as a float in one instruction, so there the exponents are floats
// (exact: those of live states stay below 2^24); elsewhere they are integers and the power is put together from bits.
#ifdef __AVX512F__
#define FASTCTC_FLOAT_EXPONENTS 1
#else
#define FASTCTC_FLOAT_EXPONENTS 0
#endif

template <class S, bool float_exponents>
struct ExponentOf {
  using Lanes = typename S::I;
  using Scalar = typename S::Int;
  FASTCTC_INLINE Lanes set1(Scalar x) { return S::set1i(x); }
};
template <class S>
struct ExponentOf<S, true> {
  using Lanes = typename S::F;
  using Scalar = typename S::Scalar;
  FASTCTC_INLINE Lanes set1(Scalar x) { return S::set1(x); }
};

template <class S>
struct Scaled {
  using F = typename S::F;
  using I = typename S::I;
  using Exponent = ExponentOf<S, FASTCTC_FLOAT_EXPONENTS>;
  using E = typename Exponent::Lanes;
  using Scalar = typename S::Scalar;
  using Traits = FloatTraits<Scalar>;

  F m;
  E e;

  FASTCTC_INLINE Scaled dead() { return {S::set1(1), Exponent::set1(Limits<Scalar>::kDead)}; }
  FASTCTC_INLINE Scaled load(const Scalar* m, const typename Exponent::Scalar* e) { return {S::load(m), S::load(e)}; }
  FASTCTC_INLINE void store(Scalar* m, typename Exponent::Scalar* e, Scaled a) {
    S::store(m, a.m);
    S::store(e, a.e);
  }
  FASTCTC_INLINE Scaled multiply(Scaled a, Scaled b) { return {a.m * b.m, a.e + b.e}; }
  FASTCTC_INLINE Scaled select(I mask, Scaled a, Scaled b) {
    return {S::select(mask, a.m, b.m), S::select(mask, a.e, b.e)};
  }
  FASTCTC_INLINE Scaled shift_up(Scaled cur, Scaled prev) {
    return {S::shift_up(cur.m, prev.m), S::shift_up(cur.e, prev.e)};
  }
  FASTCTC_INLINE Scaled shift_down(Scaled cur, Scaled next) {
    return {S::shift_down(cur.m, next.m), S::shift_down(cur.e, next.e)};
  }

#if FASTCTC_FLOAT_EXPONENTS
  FASTCTC_INLINE F value(F m, E e) {
    if constexpr (sizeof(Scalar) == 4)
      return (F)_mm512_scalef_ps((__m512)m, (__m512)e);
    else
      return (F)_mm512_scalef_pd((__m512d)m, (__m512d)e);
  }
  FASTCTC_INLINE Scaled add(Scaled a, Scaled b) {
    const E e = S::max(a.e, b.e);
    return {value(a.m, a.e - e) + value(b.m, b.e - e), e};
  }
  FASTCTC_INLINE Scaled normalised(Scaled a) {
    if constexpr (sizeof(Scalar) == 4)
      return {(F)_mm512_getmant_ps((__m512)a.m, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src),
              a.e + (F)_mm512_getexp_ps((__m512)a.m)};
    else
      return {(F)_mm512_getmant_pd((__m512d)a.m, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src),
              a.e + (F)_mm512_getexp_pd((__m512d)a.m)};
  }
  // the integer n as an exponent; `shifted` holds it in its low bits (see rounder)
  FASTCTC_INLINE E exponent(F n, F) { return n; }
#else
  // 2^(biased - kBias), exactly 0 from kBias bits below 1 on
  FASTCTC_INLINE F power_of_two(I biased) {
    return S::from_bits(S::shift_left(S::max(biased, S::set1i(0)), Traits::kMantissaBits));
  }
  // the plain number m * 2^e, 0 where it is below the type's normal range
  FASTCTC_INLINE F value(F m, E e) { return m * power_of_two(e + S::set1i(Traits::kBias)); }
  FASTCTC_INLINE Scaled add(Scaled a, Scaled b) {
    const I e = S::max(a.e, b.e);
    const I unbias = e - S::set1i(Traits::kBias);
    return {a.m * power_of_two(a.e - unbias) + b.m * power_of_two(b.e - unbias), e};
  }
  // mantissa back into [1, 2); NaN stays NaN
  FASTCTC_INLINE Scaled normalised(Scaled a) {
    const I bits = S::bits(a.m);
    const I k = S::shift_right(bits, Traits::kMantissaBits) - S::set1i(Traits::kBias);
    const I not_finite = S::less(S::set1i(Traits::kBias), k);
    return {S::select(not_finite, a.m, S::from_bits(bits - S::shift_left(k, Traits::kMantissaBits))),
            S::select(not_finite, a.e, a.e + k)};
  }
  FASTCTC_INLINE E exponent(F, F shifted) { return S::bits(shifted) - S::bits(rounder()); }
#endif

  // Adding 1.5 * 2^(mantissa bits) rounds to an integer and leaves it in the low bits.
  FASTCTC_INLINE F rounder() { return S::set1(sizeof(Scalar) == 4 ? (Scalar)12582912.0 : (Scalar)6755399441055744.0); }
};

// (e^f - 1 - f) / f^2 for |f| <= ln(2) / 2
template <class S>
FASTCTC_INLINE typename S::F exp_polynomial(typename S::F f) {
  typename S::F p;
  if constexpr (sizeof(typename S::Scalar) == 4) {
    // least maximum relative error of e^f (2e-9) with the two leading terms held at 1 and f
    p = S::set1(0.0013843607157468796f);
    p = p * f + S::set1(0.008374195545911789f);
    p = p * f + S::set1(0.04166800528764725f);
    p = p * f + S::set1(0.16666430234909058f);
    p = p * f + S::set1(0.4999999403953552f);
  } else {
    // Taylor to the 14th power: the remainder is below 1e-17 on the interval
    p = S::set1(1.0 / 87178291200.0);
    p = p * f + S::set1(1.0 / 6227020800.0);
    p = p * f + S::set1(1.0 / 479001600.0);
    p = p * f + S::set1(1.0 / 39916800.0);
    p = p * f + S::set1(1.0 / 3628800.0);
    p = p * f + S::set1(1.0 / 362880.0);
    p = p * f + S::set1(1.0 / 40320.0);
    p = p * f + S::set1(1.0 / 5040.0);
    p = p * f + S::set1(1.0 / 720.0);
    p = p * f + S::set1(1.0 / 120.0);
    p = p * f + S::set1(1.0 / 24.0);
    p = p * f + S::set1(1.0 / 6.0);
    p = p * f + S::set1(0.5);
  }
  return p;
}

// e^(r + r_low) for |r| <= kEmission * ln 2 (or NaN) as a polynomial's value in [0.70, 1.42] and a power of two.
// Two-part ln 2 (Cody and Waite) keeps the argument exact without fused multiply-add too. Exactly 1 at 0.
template <class S>
FASTCTC_INLINE Scaled<S> exp_parts(typename S::F r, typename S::F r_low) {
  using F = typename S::F;
  using Scalar = typename S::Scalar;
  constexpr bool single = sizeof(Scalar) == 4;
  const F shifted = r * S::set1((Scalar)1.4426950408889634) + Scaled<S>::rounder();
  const F n = shifted - Scaled<S>::rounder();
  F f = r - n * S::set1((Scalar)(single ? 0.693359375 : 6.93147180369123816490e-01));
  f = f - n * S::set1((Scalar)(single ? -2.12194440054690583e-4 : 1.90821492927058770002e-10)) + r_low;
  return {(exp_polynomial<S>(f) * f + S::set1(1)) * f + S::set1(1), Scaled<S>::exponent(n, shifted)};
}

// e^r as a plain number: 0 below the type's normal range, inf above it, NaN for NaN
template <class S>
FASTCTC_INLINE typename S::F exp_value(typename S::F r) {
  using F = typename S::F;
  using Scalar = typename S::Scalar;
  // just past the largest finite power, where the exponent field is that of inf
  const Scalar highest = (Scalar)((FloatTraits<Scalar>::kBias + 1.2) * 0.69314718055994530942);
  r = S::at_most(S::set1(highest), S::at_least(S::set1(-2 * highest), r));
  const F shifted = r * S::set1((Scalar)1.4426950408889634) + Scaled<S>::rounder();
  const F n = shifted - Scaled<S>::rounder();
  const F f = sizeof(Scalar) == 4 ? r - n * S::set1((Scalar)0.69314718055994530942)
                                  : r - n * S::set1((Scalar)6.93147180369123816490e-01) -
                                        n * S::set1((Scalar)1.90821492927058770002e-10);
  const F p = (exp_polynomial<S>(f) * f + S::set1(1)) * f + S::set1(1);
  return Scaled<S>::value(p, Scaled<S>::exponent(n, shifted));
}

// e^(x - base) with the rounding of the subtraction made up for, so that logits in the thousands keep float accuracy.
// base is finite and x at most base; an x of NaN or +inf gives NaN, and -inf, like all that is too far below the base,
// a dead emission.
template <class S>
FASTCTC_INLINE Scaled<S> emission(typename S::F x, typename S::Scalar base) {
  using F = typename S::F;
  using Scalar = typename S::Scalar;
  using Exponent = typename Scaled<S>::Exponent;
  const F lowest = S::set1(base - (Scalar)(Limits<Scalar>::kEmission * 0.69314718055994530942)), b = S::set1(base);
  const auto dead = S::less(x, lowest);
  x = S::at_least(lowest, x);
  const F r = x - b, back = r - x;
  const F lost = (x - (r - back)) - (b + back);
  Scaled<S> a = exp_parts<S>(r, lost);
  a.e = S::select(dead, Exponent::set1(Limits<Scalar>::kDeadEmission), a.e);
  return a;
}

}  // namespace
