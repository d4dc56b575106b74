// Natural logarithms of whole vectors, to about two units in the last place.
#pragma once

#include "vec.h"

namespace {

template <class S>
struct Logarithm {
  using F = typename S::F;
  using I = typename S::I;
  using Scalar = typename S::Scalar;
  using Int = typename S::Int;
  using Traits = FloatTraits<Scalar>;
  static constexpr bool kDouble = sizeof(Scalar) == 8;
  // atanh(s) = s + s^3 / 3 + ...: |s| <= 0.1716, so these many terms leave 2e-9 in float and 2e-18 in double
  static constexpr int kTerms = kDouble ? 11 : 5;

  // log(1 + x), also where x is far below 1
  FASTCTC_INLINE F one_plus(F x) {
    const F one = S::set1(1), u = one + x;
    const I k = exponent(u);
    // what 1 + x lost in rounding, relative to it
    const F lost = (x - (u - one)) / u;
    const I is_scaled = S::select(S::less(k, S::set1i(0)), S::set1i(-1), S::less(S::set1i(0), k));
    const F f = S::select(is_scaled, mantissa(u, k) - one, x);
    const F result = scaled(f, k, S::select(is_scaled, lost, S::set1(0)));
    return special(result, u, x);
  }

  FASTCTC_INLINE F of(F u) {
    const I k = exponent(u);
    return special(scaled(mantissa(u, k) - S::set1(1), k, S::set1(0)), u, u);
  }

 private:
  // k with u = m * 2^k, m in [sqrt(1/2), sqrt(2))
  FASTCTC_INLINE I exponent(F u) {
    const Int root_half = kDouble ? (Int)0x3fe6a09e667f3bcd : (Int)0x3f3504f3;
    return S::shift_right(S::bits(u) - S::set1i(root_half), Traits::kMantissaBits);
  }
  FASTCTC_INLINE F mantissa(F u, I k) { return S::from_bits(S::bits(u) - S::shift_left(k, Traits::kMantissaBits)); }

  // log(1 + f) + k * log(2) + lost
  FASTCTC_INLINE F scaled(F f, I k, F lost) {
    const F s = f / (S::set1(2) + f), z = s * s;
    F series = S::set1(Scalar(1) / (2 * kTerms - 1));
    for (int i = kTerms - 2; i >= 1; --i) series = series * z + S::set1(Scalar(1) / (2 * i + 1));
    // 2 atanh(s) = 2 s + 2 s z series, and 2 s = f - s f holds the leading bits of f exactly
    const F small = (s + s) * (z * series) - s * f + lost;
    // The upper part of log(2) has trailing zeros, so that its product with k is exact.
    const Scalar high = kDouble ? Scalar(0.693147180369123816490) : Scalar(0.693145751953125);
    const Scalar low = kDouble ? Scalar(1.90821492927058770002e-10) : Scalar(1.42860676533018518e-6);
    const F n = whole(k);
    return n * S::set1(high) + (f + (n * S::set1(low) + small));
  }

  // an integer within +-2^20 as a float: it lands in the low mantissa bits of a large one
  FASTCTC_INLINE F whole(I k) {
    const Scalar magic = kDouble ? Scalar(6755399441055744.0) : Scalar(12582912.0);
    return S::from_bits(S::bits(S::set1(magic)) + k) - S::set1(magic);
  }

  // `u` is what the logarithm is of: 0, negative, infinite or NaN; `x` the argument that a NaN is passed on from
  FASTCTC_INLINE F special(F result, F u, F x) {
    const Scalar smallest = kDouble ? Scalar(2.2250738585072014e-308) : Scalar(1.17549435e-38f);
    const F inf = S::set1(Scalar(infinity())), zero = S::set1(0);
    // Below the smallest normal number there is only 0, as far as spectrograms go, and what is negative.
    const F bad = S::select(S::less(u, zero), S::set1(Scalar(not_a_number())), zero - inf);
    result = S::select(S::less(u, S::set1(smallest)), bad, result);
    const I finite = S::less(u, inf);
    return S::select(finite, result, x + u);
  }
};

}  // namespace
