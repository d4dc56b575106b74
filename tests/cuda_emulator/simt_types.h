// CUDA's types, arithmetic intrinsics and half precision for the host, named as in the toolkit's headers.
#pragma once

#include <math.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// Aligned as on the device, so that UBSan sees a vector access at an address that a GPU would refuse.
#define FASTCTC_SIMT_VECTOR2(name, scalar)  \
  struct alignas(2 * sizeof(scalar)) name { \
    scalar x, y;                            \
  };                                        \
  inline name make_##name(scalar x, scalar y) { return name{x, y}; }
#define FASTCTC_SIMT_VECTOR4(name, scalar)                            \
  struct alignas(sizeof(scalar) < 8 ? 4 * sizeof(scalar) : 16) name { \
    scalar x, y, z, w;                                                \
  };                                                                  \
  inline name make_##name(scalar x, scalar y, scalar z, scalar w) { return name{x, y, z, w}; }
FASTCTC_SIMT_VECTOR2(char2, signed char)
FASTCTC_SIMT_VECTOR2(uchar2, unsigned char)
FASTCTC_SIMT_VECTOR2(short2, short)
FASTCTC_SIMT_VECTOR2(ushort2, unsigned short)
FASTCTC_SIMT_VECTOR2(int2, int)
FASTCTC_SIMT_VECTOR2(uint2, unsigned)
FASTCTC_SIMT_VECTOR2(longlong2, long long)
FASTCTC_SIMT_VECTOR2(ulonglong2, unsigned long long)
FASTCTC_SIMT_VECTOR2(float2, float)
FASTCTC_SIMT_VECTOR2(double2, double)
FASTCTC_SIMT_VECTOR4(char4, signed char)
FASTCTC_SIMT_VECTOR4(uchar4, unsigned char)
FASTCTC_SIMT_VECTOR4(short4, short)
FASTCTC_SIMT_VECTOR4(ushort4, unsigned short)
FASTCTC_SIMT_VECTOR4(int4, int)
FASTCTC_SIMT_VECTOR4(uint4, unsigned)
FASTCTC_SIMT_VECTOR4(float4, float)
FASTCTC_SIMT_VECTOR4(double4, double)
#undef FASTCTC_SIMT_VECTOR2
#undef FASTCTC_SIMT_VECTOR4

namespace fastctc {
namespace simt {

template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// Round to nearest even; NaN becomes the NaN that the device's conversion gives.
inline unsigned short half_bits(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7fff;
  if (magnitude >= 0x477ff000u) return static_cast<unsigned short>(sign | 0x7c00u);
  // Below 2^-14 a half is a multiple of 2^-24, which a float near 2^-1 resolves exactly as far.
  if (magnitude < 0x38800000u)
    return static_cast<unsigned short>(sign | (bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u));
  const uint32_t odd = (magnitude >> 13) & 1u;
  return static_cast<unsigned short>(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
}
inline float half_value(unsigned short bits) {
  const uint32_t sign = (bits & 0x8000u) << 16, exponent = (bits >> 10) & 31u, mantissa = bits & 0x3ffu;
  if (exponent == 31) return bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent == 0) return copysignf(static_cast<float>(mantissa) * 0x1p-24f, bit_cast<float>(sign));
  return bit_cast<float>(sign | ((exponent + 112u) << 23) | (mantissa << 13));
}
inline unsigned short bfloat16_bits(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return static_cast<unsigned short>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
inline float bfloat16_value(unsigned short bits) { return bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

// On the device an int that leaves its range wraps; in C++ that is undefined and UBSan stops at it.
inline int wrapping_add(int a, int b) { return static_cast<int>(static_cast<unsigned>(a) + static_cast<unsigned>(b)); }

}  // namespace simt
}  // namespace fastctc

struct __half {
  unsigned short bits;
  __half() = default;
  __half(float value) : bits(fastctc::simt::half_bits(value)) {}
  operator float() const { return fastctc::simt::half_value(bits); }
};
struct __nv_bfloat16 {
  unsigned short bits;
  __nv_bfloat16() = default;
  __nv_bfloat16(float value) : bits(fastctc::simt::bfloat16_bits(value)) {}
  operator float() const { return fastctc::simt::bfloat16_value(bits); }
};
using half = __half;
using nv_bfloat16 = __nv_bfloat16;
struct alignas(4) __half2 {
  __half x, y;
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

inline __half __float2half(float a) { return a; }
inline __half __float2half_rn(float a) { return a; }
inline float __half2float(__half a) { return a; }
inline __half2 __floats2half2_rn(float a, float b) { return {a, b}; }
inline __half2 __float22half2_rn(float2 a) { return {a.x, a.y}; }
inline float2 __half22float2(__half2 a) { return {a.x, a.y}; }
inline __half __ushort_as_half(unsigned short a) { return fastctc::simt::bit_cast<__half>(a); }
inline unsigned short __half_as_ushort(__half a) { return a.bits; }
inline __nv_bfloat16 __float2bfloat16(float a) { return a; }
inline __nv_bfloat16 __float2bfloat16_rn(float a) { return a; }
inline float __bfloat162float(__nv_bfloat16 a) { return a; }
inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) { return {a, b}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 a) { return {a.x, a.y}; }
inline float2 __bfloat1622float2(__nv_bfloat162 a) { return {a.x, a.y}; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short a) { return fastctc::simt::bit_cast<__nv_bfloat16>(a); }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 a) { return a.bits; }

inline int __float_as_int(float a) { return fastctc::simt::bit_cast<int>(a); }
inline unsigned __float_as_uint(float a) { return fastctc::simt::bit_cast<unsigned>(a); }
inline float __int_as_float(int a) { return fastctc::simt::bit_cast<float>(a); }
inline float __uint_as_float(unsigned a) { return fastctc::simt::bit_cast<float>(a); }
inline long long __double_as_longlong(double a) { return fastctc::simt::bit_cast<long long>(a); }
inline double __longlong_as_double(long long a) { return fastctc::simt::bit_cast<double>(a); }

inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float __expf(float a) { return expf(a); }
inline float __exp10f(float a) { return powf(10.0f, a); }
inline float __logf(float a) { return logf(a); }
inline float __log2f(float a) { return log2f(a); }
inline float __powf(float a, float b) { return powf(a, b); }
inline float __saturatef(float a) { return fminf(fmaxf(a, 0.0f), 1.0f); }
inline float rsqrtf(float a) { return 1.0f / sqrtf(a); }
inline double rsqrt(double a) { return 1.0 / sqrt(a); }
inline int __float2int_rn(float a) { return static_cast<int>(nearbyintf(a)); }
inline int __float2int_rz(float a) { return static_cast<int>(a); }
inline int __float2int_rd(float a) { return static_cast<int>(floorf(a)); }
inline long long __double2ll_rn(double a) { return static_cast<long long>(nearbyint(a)); }
inline long long __double2ll_rd(double a) { return static_cast<long long>(floor(a)); }
inline int __double2int_rn(double a) { return static_cast<int>(nearbyint(a)); }
inline int __double2int_rd(double a) { return static_cast<int>(floor(a)); }

inline int __popc(unsigned a) { return __builtin_popcount(a); }
inline int __popcll(unsigned long long a) { return __builtin_popcountll(a); }
inline int __ffs(int a) { return __builtin_ffs(a); }
inline int __ffsll(long long a) { return __builtin_ffsll(a); }
inline int __clz(int a) { return a ? __builtin_clz(static_cast<unsigned>(a)) : 32; }
inline int __clzll(long long a) { return a ? __builtin_clzll(static_cast<unsigned long long>(a)) : 64; }
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>(((static_cast<uint64_t>(high) << 32 | low) << (shift & 31)) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32); }

// CUDA's min and max of one type; floating point ones prefer a number to NaN.
template <class T, std::enable_if_t<std::is_integral<T>::value, int> = 0>
inline T min(T a, T b) {
  return b < a ? b : a;
}
template <class T, std::enable_if_t<std::is_integral<T>::value, int> = 0>
inline T max(T a, T b) {
  return a < b ? b : a;
}
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

// Fused add and maximum (DPX).
inline int __viaddmax_s32(int a, int b, int c) { return max(fastctc::simt::wrapping_add(a, b), c); }
inline int __viaddmin_s32(int a, int b, int c) { return min(fastctc::simt::wrapping_add(a, b), c); }
inline int __viaddmax_s32_relu(int a, int b, int c) { return max(__viaddmax_s32(a, b, c), 0); }
inline int __vimax3_s32(int a, int b, int c) { return max(max(a, b), c); }
inline int __vimin3_s32(int a, int b, int c) { return min(min(a, b), c); }
