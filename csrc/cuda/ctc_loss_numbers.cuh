// Numbers of the CTC loss's kernels: storage types, exponentials, and probabilities as mantissa * 2^exponent.
//
// The lattice multiplies thousands of probabilities, and no scale per frame or row holds both the best path and the one
// that turns out to survive. So every state has an integer exponent of its own. Mantissas are at least 1 always, which
// lets a sum scale its addends by adding to their exponent fields; they are brought back into [1, 2) every few frames.
#pragma once

#include "platform.h"

namespace fastctc {
namespace cuda {

// Exponents count in bits relative to the product of the frames' bases (see emission), so they hardly rise above 0.
//   An emission more than kEmission bits below its frame's base (float: 181,704 nats) counts as -inf.
//   A path below kDeadBelow counts as impossible. No state's exponent gets below kDead, which is a dead emission's, so
//   that the sum of two never wraps, less a total of up to 2^26 bits.
template <class Scalar>
struct Number;

template <>
struct Number<float> {
  using Exponent = int;
  static constexpr int kMantissaBits = 23, kBias = 127;
  static constexpr int kEmission = 1 << 18;
  static constexpr int kDead = -(1 << 30) + (1 << 26);
  static constexpr int kDeadBelow = -(1 << 29);
  static constexpr float kLowest = -3.402823466e38f;  // finite

  static __device__ __forceinline__ int bits(float x) { return __float_as_int(x); }
  static __device__ __forceinline__ float value(int bits) { return __int_as_float(bits); }
};

template <>
struct Number<double> {
  using Exponent = long long;
  static constexpr int kMantissaBits = 52, kBias = 1023;
  static constexpr long long kEmission = 1ll << 30;
  static constexpr long long kDead = -(1ll << 60) + (1ll << 56);
  static constexpr long long kDeadBelow = -(1ll << 59);
  static constexpr double kLowest = -1.7976931348623157e308;

  static __device__ __forceinline__ long long bits(double x) { return __double_as_longlong(x); }
  static __device__ __forceinline__ double value(long long bits) { return __longlong_as_double(bits); }
};

// What scores of type X are computed in.
template <class X>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};

__device__ __forceinline__ float to_scalar(float x) { return x; }
__device__ __forceinline__ double to_scalar(double x) { return x; }
__device__ __forceinline__ float to_scalar(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_scalar(__nv_bfloat16 x) { return __bfloat162float(x); }

// to nearest, ties to even
__device__ __forceinline__ void from_scalar(float x, float& out) { out = x; }
__device__ __forceinline__ void from_scalar(double x, double& out) { out = x; }
__device__ __forceinline__ void from_scalar(float x, __half& out) { out = __float2half_rn(x); }
__device__ __forceinline__ void from_scalar(float x, __nv_bfloat16& out) { out = __float2bfloat16_rn(x); }

// 16 bytes of scores, as one memory access moves them
template <class X>
struct alignas(16) Packet {
  static constexpr int kSize = 16 / sizeof(X);
  X x[kSize];
};

template <class Int>
__device__ __forceinline__ Int at_least(Int a, Int b) {
  return a > b ? a : b;
}
template <class Int>
__device__ __forceinline__ Int at_most(Int a, Int b) {
  return a < b ? a : b;
}

template <class Scalar>
__device__ __forceinline__ bool is_nan(Scalar x) {
  return x != x;
}
template <class Scalar>
__device__ __forceinline__ bool below_infinity(Scalar x) {  // false for NaN too
  return x <= -Number<Scalar>::kLowest;
}
__device__ __forceinline__ float not_a_number(float) { return __int_as_float(0x7fc00000); }
__device__ __forceinline__ double not_a_number(double) { return __longlong_as_double(0x7ff8000000000000ll); }
__device__ __forceinline__ double positive_infinity() { return __longlong_as_double(0x7ff0000000000000ll); }

// e^x, exactly 1 at 0. In float to 2 units in the last place and the rounding of x / ln 2, which suits softmax sums:
// the larger -x is, the less a term matters.
__device__ __forceinline__ float exp_value(float x) { return exp2_approx(x * 1.44269504088896341f); }
__device__ __forceinline__ double exp_value(double x) { return exp(x); }

template <class Scalar>
struct alignas(2 * sizeof(Scalar)) Scaled {
  Scalar m;
  typename Number<Scalar>::Exponent e;
};

template <class Scalar>
__device__ __forceinline__ Scaled<Scalar> one() {
  return {Scalar(1), 0};
}
template <class Scalar>
__device__ __forceinline__ Scaled<Scalar> dead() {
  return {Scalar(1), Number<Scalar>::kDead};
}

// m * 2^d, for m >= 1 and d <= 0; further down than the type's normal range it stays at that range's end
template <class Scalar>
__device__ __forceinline__ Scalar scaled_down(Scalar m, typename Number<Scalar>::Exponent d) {
  using N = Number<Scalar>;
  d = at_least<typename N::Exponent>(d, 1 - N::kBias);
  return N::value(N::bits(m) + d * (typename N::Exponent(1) << N::kMantissaBits));
}

template <class Scalar>
__device__ __forceinline__ Scaled<Scalar> add(Scaled<Scalar> a, Scaled<Scalar> b) {
  const auto e = at_least(a.e, b.e);
  return {scaled_down(a.m, a.e - e) + scaled_down(b.m, b.e - e), e};
}

template <class Scalar>
__device__ __forceinline__ Scaled<Scalar> multiply(Scaled<Scalar> a, Scaled<Scalar> b) {
  return {a.m * b.m, at_least(a.e + b.e, Number<Scalar>::kDead)};
}

// a * b as a plain number, which is at most about 1: exactly 0 below the type's normal range
template <class Scalar>
__device__ __forceinline__ Scalar plain_product(Scaled<Scalar> a, Scaled<Scalar> b) {
  using N = Number<Scalar>;
  using Exponent = typename N::Exponent;
  constexpr Exponent unit = Exponent(1) << N::kMantissaBits;
  const Exponent e = at_least<Exponent>(a.e + b.e, -N::kBias);
  return a.m * b.m * N::value(e * unit + N::kBias * unit);
}

// 1 / a of a mantissa in [1, 2), again with one that is at least 1
template <class Scalar>
__device__ __forceinline__ Scaled<Scalar> inverse(Scaled<Scalar> a) {
  return {Scalar(2) / a.m, -a.e - 1};
}

// mantissa back into [1, 2)
template <class Scalar>
__device__ __forceinline__ Scaled<Scalar> normalised(Scaled<Scalar> a) {
  using N = Number<Scalar>;
  using Exponent = typename N::Exponent;
  const Exponent bits = N::bits(a.m), one = Exponent(N::kBias) << N::kMantissaBits;
  const Exponent mantissa = bits & ((Exponent(1) << N::kMantissaBits) - 1);
  return {N::value(mantissa | one), a.e + (bits >> N::kMantissaBits) - N::kBias};
}

// (e^f - 1 - f) / f^2 for |f| <= ln(2) / 2
__device__ __forceinline__ float exp_polynomial(float f) {
  // least maximum relative error of e^f (2e-9) with the two leading terms held at 1 and f
  float p = 0.0013843607157468796f;
  p = p * f + 0.008374195545911789f;
  p = p * f + 0.04166800528764725f;
  p = p * f + 0.16666430234909058f;
  return p * f + 0.4999999403953552f;
}
__device__ __forceinline__ double exp_polynomial(double f) {
  // Taylor to the 14th power: the remainder is below 1e-17 on the interval
  double p = 1.0 / 87178291200.0;
  p = p * f + 1.0 / 6227020800.0;
  p = p * f + 1.0 / 479001600.0;
  p = p * f + 1.0 / 39916800.0;
  p = p * f + 1.0 / 3628800.0;
  p = p * f + 1.0 / 362880.0;
  p = p * f + 1.0 / 40320.0;
  p = p * f + 1.0 / 5040.0;
  p = p * f + 1.0 / 720.0;
  p = p * f + 1.0 / 120.0;
  p = p * f + 1.0 / 24.0;
  p = p * f + 1.0 / 6.0;
  return p * f + 0.5;
}

// e^(x - base) with the rounding of the subtraction made up for: with logits of a thousand it would be worth 6e-5.
// base is finite, x at most base; what is too far below the base, as -inf is, is a dead emission.
template <class Scalar>
__device__ Scaled<Scalar> emission(Scalar x, Scalar base) {
  using N = Number<Scalar>;
  constexpr bool single = sizeof(Scalar) == 4;
  // adding it rounds to an integer, which is then in the low bits of the sum
  constexpr Scalar rounder = Scalar(single ? 12582912.0 : 6755399441055744.0);
  if (!(x >= base - Scalar(N::kEmission * 0.69314718055994530942))) return dead<Scalar>();
  const Scalar r = x - base, back = r - x;
  const Scalar lost = (x - (r - back)) - (base + back);
  const Scalar shifted = r * Scalar(1.4426950408889634) + rounder;
  const Scalar n = shifted - rounder;
  // ln 2 in two parts (Cody and Waite)
  Scalar f = r - n * Scalar(single ? 0.693359375 : 6.93147180369123816490e-01);
  f = f - n * Scalar(single ? -2.12194440054690583e-4 : 1.90821492927058770002e-10) + lost;
  const Scalar p = (exp_polynomial(f) * f + Scalar(1)) * f + Scalar(1);
  return normalised(Scaled<Scalar>{p, N::bits(shifted) - N::bits(rounder)});
}

}  // namespace cuda
}  // namespace fastctc
