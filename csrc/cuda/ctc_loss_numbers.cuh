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
//   An emission more than kEmission bits below its frame's base (float: 181,704 nats) counts as -inf: it has kDead.
//   A path below kDeadBelow counts as impossible; kDead is far enough below it that a path with a dead emission is no
//   part of any posterior. States are raised to kFloor wherever mantissas are normalised, after at most 8 emissions, so
//   that the sum of two exponents never wraps.
// The k...State and k...Emission are widths of the fields of packed numbers: see FarCode.
template <class Scalar>
struct Number;

template <>
struct Number<float> {
  using Exponent = int;
  using Bits = unsigned;
  static constexpr int kMantissaBits = 23, kBias = 127;
  static constexpr int kEmission = 1 << 18;
  static constexpr int kDead = -(1 << 26), kFloor = -(1 << 29), kDeadBelow = -(1 << 25);
  static constexpr int kStateBits = 19;
  static constexpr int kFarState = 13, kVeryFarState = 19, kFarEmission = 11, kVeryFarEmission = 18;
  static constexpr float kLowest = -3.402823466e38f;  // finite

  static __device__ __forceinline__ int bits(float x) { return __float_as_int(x); }
  static __device__ __forceinline__ float value(int bits) { return __int_as_float(bits); }
};

template <>
struct Number<double> {
  using Exponent = long long;
  using Bits = unsigned long long;
  static constexpr int kMantissaBits = 52, kBias = 1023;
  static constexpr long long kEmission = 1ll << 30;
  static constexpr long long kDead = -(1ll << 58), kFloor = -(1ll << 61), kDeadBelow = -(1ll << 57);
  static constexpr int kStateBits = 48;
  static constexpr int kFarState = 20, kVeryFarState = 31, kFarEmission = 14, kVeryFarEmission = 31;
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
  return {Scalar(1), Number<Scalar>::kFloor};
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
  return {a.m * b.m, a.e + b.e};
}

// a * b as a plain number, which is at most about 1 (else it is any number): exactly 0 below the type's normal range
template <class Scalar>
__device__ __forceinline__ Scalar plain_product(Scaled<Scalar> a, Scaled<Scalar> b) {
  using N = Number<Scalar>;
  using Exponent = typename N::Exponent;
  constexpr typename N::Bits unit = typename N::Bits(1) << N::kMantissaBits;
  const Exponent e = at_least<Exponent>(a.e + b.e, -N::kBias);
  return a.m * b.m * N::value(Exponent((typename N::Bits(e) + N::kBias) * unit));
}

// 1 / a of a mantissa in [1, 2), again with one that is at least 1
template <class Scalar>
__device__ __forceinline__ Scaled<Scalar> inverse(Scaled<Scalar> a) {
  return {Scalar(2) / a.m, -a.e - 1};
}

// a number in [1, 2) from the low kMantissaBits of `bits`
template <class Scalar>
__device__ __forceinline__ Scalar mantissa(typename Number<Scalar>::Exponent bits) {
  using N = Number<Scalar>;
  using Exponent = typename N::Exponent;
  return N::value((bits & ((Exponent(1) << N::kMantissaBits) - 1)) | (Exponent(N::kBias) << N::kMantissaBits));
}

// mantissa back into [1, 2), exponent to kFloor at least
template <class Scalar>
__device__ __forceinline__ Scaled<Scalar> normalised(Scaled<Scalar> a) {
  using N = Number<Scalar>;
  const typename N::Exponent bits = N::bits(a.m);
  return {mantissa<Scalar>(bits), at_least(a.e + (bits >> N::kMantissaBits) - N::kBias, N::kFloor)};
}

// Packed numbers are of three kinds. A near one has no sign bit. One that is further down has it, then 0 and fields of
// kFarExponent bits and the rest; one that is very far down has 1, kVeryFarExponent bits and the rest. The fields are
// how far it is below the range before and the leading bits of m's mantissa. All ones is 0.
template <class Scalar, int kExponentBits>
struct FarFields {
  using N = Number<Scalar>;
  using Exponent = typename N::Exponent;
  static constexpr int kKept = 8 * int(sizeof(Scalar)) - 2 - kExponentBits;  // bits of the mantissa
  static constexpr Exponent kRange = Exponent(1) << kExponentBits;

  static __device__ __forceinline__ Exponent pack(Exponent below, Scalar m) {
    constexpr Exponent all = (Exponent(1) << N::kMantissaBits) - 1;
    return (below << kKept) | ((N::bits(m) & all) >> (N::kMantissaBits - kKept));
  }
  static __device__ __forceinline__ Exponent below(Exponent code) { return (code >> kKept) & (kRange - 1); }
  static __device__ __forceinline__ Scalar m(Exponent code) {
    constexpr int lost = N::kMantissaBits - kKept;  // they stand for the middle of what they may have been
    return mantissa<Scalar>(((code & ((Exponent(1) << kKept) - 1)) << lost) | (Exponent(1) << (lost - 1)));
  }
};

template <class Scalar, int kFarExponent, int kVeryFarExponent>
struct FarCode {
  using Exponent = typename Number<Scalar>::Exponent;
  using Far = FarFields<Scalar, kFarExponent>;
  using VeryFar = FarFields<Scalar, kVeryFarExponent>;
  static constexpr Exponent kVery = Exponent(1) << (8 * sizeof(Scalar) - 2), kSign = -kVery - kVery;

  // m * 2^-below, in units of the near range's lower end
  static __device__ __forceinline__ Exponent pack(Exponent below, Scalar m) {
    if (below < Far::kRange) return kSign | Far::pack(below, m);
    below -= Far::kRange;
    return below < VeryFar::kRange - 1 ? kSign | kVery | VeryFar::pack(below, m) : Exponent(-1);
  }
  static __device__ __forceinline__ Scaled<Scalar> unpack(Exponent code, Exponent zero) {
    if (code == Exponent(-1)) return {Scalar(1), zero};
    if (!(code & kVery)) return {Far::m(code), -Far::below(code)};
    return {VeryFar::m(code), -Far::kRange - VeryFar::below(code)};
  }
};
template <class Scalar>
using FarEmission = FarCode<Scalar, Number<Scalar>::kFarEmission, Number<Scalar>::kVeryFarEmission>;
template <class Scalar>
using FarState = FarCode<Scalar, Number<Scalar>::kFarState, Number<Scalar>::kVeryFarState>;

// An emission, mantissa in [1, 2): the plain number where that is in the type's normal range, for float all of e^-87
// and above. Down to e^-1507 there are 19 bits of mantissa, below 12.
template <class Scalar>
__device__ __forceinline__ typename Number<Scalar>::Exponent pack_emission(Scaled<Scalar> y) {
  using N = Number<Scalar>;
  using Exponent = typename N::Exponent;
  if (y.e > -N::kBias) return N::bits(y.m) + y.e * (Exponent(1) << N::kMantissaBits);
  return FarEmission<Scalar>::pack(-N::kBias - y.e, y.m);
}
// with an exponent that is kBias too large, which the caller takes off a sum of three
template <class Scalar>
__device__ __forceinline__ Scaled<Scalar> unpack_near_emission(typename Number<Scalar>::Exponent code) {
  return {mantissa<Scalar>(code), code >> Number<Scalar>::kMantissaBits};
}
template <class Scalar>
__device__ __forceinline__ Scaled<Scalar> unpack_emission_biased(typename Number<Scalar>::Exponent code) {
  if (code >= 0) return unpack_near_emission<Scalar>(code);
  return FarEmission<Scalar>::unpack(code, Number<Scalar>::kDead);
}
template <class Scalar>
__device__ __forceinline__ Scaled<Scalar> unpack_emission(typename Number<Scalar>::Exponent code) {
  Scaled<Scalar> y = unpack_emission_biased<Scalar>(code);
  y.e -= Number<Scalar>::kBias;
  return y;
}

// States of neighbouring labels are packed relative to an exponent that all of them share, `lowest`: kNearRange - 1
// below the largest that one of them can have. For float, a state has 19 bits of mantissa (a relative error of 1e-6)
// down to 2,838 nats below that largest one, 17 bits (4e-6) down to 8,516 nats, 11 bits (2e-4) down to 371,000 nats.
template <class Scalar>
constexpr typename Number<Scalar>::Exponent kNearRange =
    typename Number<Scalar>::Exponent(1) << (8 * sizeof(Scalar) - 1 - Number<Scalar>::kStateBits);
// More than the exponent of any mantissa that is not normalised.
constexpr int kMantissaRoom = 32;

// for a state whose exponent is at least `lowest`
template <class Scalar>
__device__ __forceinline__ typename Number<Scalar>::Exponent pack_near_state(Scaled<Scalar> state,
                                                                             typename Number<Scalar>::Exponent lowest) {
  using N = Number<Scalar>;
  using Exponent = typename N::Exponent;
  constexpr int dropped = N::kMantissaBits - N::kStateBits;
  const Exponent rounded = N::bits(state.m) + (Exponent(1) << (dropped - 1));
  return (rounded >> dropped) + (state.e - lowest - N::kBias) * (Exponent(1) << N::kStateBits);
}
template <class Scalar>
__device__ __forceinline__ typename Number<Scalar>::Exponent pack_state(Scaled<Scalar> state,
                                                                        typename Number<Scalar>::Exponent lowest) {
  using N = Number<Scalar>;
  if (state.e >= lowest) return pack_near_state(state, lowest);
  const auto exponent = state.e + (N::bits(state.m) >> N::kMantissaBits) - N::kBias;
  return FarState<Scalar>::pack(lowest + kMantissaRoom - exponent, state.m);
}
template <class Scalar>
__device__ __forceinline__ Scaled<Scalar> unpack_near_state(typename Number<Scalar>::Exponent code,
                                                            typename Number<Scalar>::Exponent lowest) {
  using N = Number<Scalar>;
  using Exponent = typename N::Exponent;
  const Exponent kept = code & ((Exponent(1) << N::kStateBits) - 1);
  return {mantissa<Scalar>(kept << (N::kMantissaBits - N::kStateBits)), (code >> N::kStateBits) + lowest};
}
template <class Scalar>
__device__ __forceinline__ Scaled<Scalar> unpack_state(typename Number<Scalar>::Exponent code,
                                                       typename Number<Scalar>::Exponent lowest) {
  if (code >= 0) return unpack_near_state<Scalar>(code, lowest);
  const auto from = lowest + kMantissaRoom;
  Scaled<Scalar> state = FarState<Scalar>::unpack(code, Number<Scalar>::kFloor - from);
  state.e += from;
  return state;
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
  if (!(x >= base - Scalar(N::kEmission * 0.69314718055994530942))) return {Scalar(1), N::kDead};
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
