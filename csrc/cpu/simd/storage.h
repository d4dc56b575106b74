// How scores and gradients lie in memory: float16, bfloat16, float32 or float64, read into and written from one compute
// type.
#pragma once

#include "vec.h"

namespace {

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class X>
struct IsFloat16 {
  static constexpr bool value = false;
};
template <>
struct IsFloat16<Float16> {
  static constexpr bool value = true;
};

FASTCTC_INLINE float float_of_bits(uint32_t bits) {
  float x;
  FASTCTC_COPY(&x, &bits, sizeof x);
  return x;
}
FASTCTC_INLINE uint32_t bits_of_float(float x) {
  uint32_t bits;
  FASTCTC_COPY(&bits, &x, sizeof bits);
  return bits;
}

FASTCTC_INLINE float to_scalar(float x) { return x; }
FASTCTC_INLINE double to_scalar(double x) { return x; }
FASTCTC_INLINE float to_scalar(BFloat16 x) { return float_of_bits((uint32_t)x.bits << 16); }
FASTCTC_INLINE float to_scalar(Float16 x) {
  const uint32_t sign = (uint32_t)(x.bits & 0x8000u) << 16, exponent = (x.bits >> 10) & 31u, mantissa = x.bits & 1023u;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24
    const float magnitude = (float)mantissa * 5.9604644775390625e-8f;
    return float_of_bits(bits_of_float(magnitude) | sign);
  }
  const uint32_t wide = exponent == 31 ? 255 : exponent + 112;
  return float_of_bits(sign | wide << 23 | mantissa << 13);
}

// round to nearest, ties to even
FASTCTC_INLINE void from_scalar(float x, float& out) { out = x; }
FASTCTC_INLINE void from_scalar(double x, double& out) { out = x; }
FASTCTC_INLINE void from_scalar(float x, BFloat16& out) {
  const uint32_t bits = bits_of_float(x);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  out.bits = nan ? 0x7fc0 : (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
FASTCTC_INLINE void from_scalar(float x, Float16& out) {
  const uint32_t bits = bits_of_float(x), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u)
    half = 0x7e00;
  else if (magnitude >= 0x477ff000u)
    half = 0x7c00;  // rounds past the largest finite value, 65504
  else if (magnitude < 0x38800000u) {
    // subnormal in float16: adding 0.5 leaves multiples of 2^-24 in the low mantissa bits, rounded by the hardware
    half = bits_of_float(float_of_bits(magnitude) + 0.5f) - bits_of_float(0.5f);
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  out.bits = (uint16_t)(sign | half);
}

// float16 or bfloat16 lanes to float
#ifdef __AVX512F__
template <class X>
FASTCTC_INLINE __m512 widen(__m256i raw) {
  if constexpr (IsFloat16<X>::value)
    return _mm512_cvtph_ps(raw);
  else
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16);
}
#elif defined(__AVX2__)
template <class X>
FASTCTC_INLINE __m256 widen(__m128i raw) {
  if constexpr (IsFloat16<X>::value)
    return _mm256_cvtph_ps(raw);
  else
    return (__m256)_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16);
}
#endif

template <class S, class X>
FASTCTC_INLINE typename S::F load_as(const X* p) {
  if constexpr (sizeof(X) == sizeof(typename S::Scalar)) {
    return S::load(p);
  } else {
#ifdef __AVX512F__
    if constexpr (S::W == 16) return (typename S::F)widen<X>(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__AVX2__)
    if constexpr (S::W == 8) return (typename S::F)widen<X>(_mm_loadu_si128((const __m128i*)p));
#endif
    typename S::Scalar lanes[S::W];
    for (int i = 0; i < S::W; ++i) lanes[i] = to_scalar(p[i]);
    return S::load(lanes);
  }
}

template <class S, class X>
FASTCTC_INLINE void store_as(X* p, typename S::F x) {
  if constexpr (sizeof(X) == sizeof(typename S::Scalar)) {
    S::store(p, x);
  } else {
#ifdef __AVX512F__
    if constexpr (S::W == 16 && IsFloat16<X>::value) {
      _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
      return;
    }
#elif defined(__AVX2__)
    if constexpr (S::W == 8 && IsFloat16<X>::value) {
      _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
      return;
    }
#endif
    typename S::Scalar lanes[S::W];
    S::store(lanes, x);
    for (int i = 0; i < S::W; ++i) from_scalar(lanes[i], p[i]);
  }
}

// A whole row; `stream` goes past the caches where the target and the types allow it.
template <class S, class X>
FASTCTC_INLINE void write_row(X* out, const typename S::Scalar* made, int64_t n, bool stream) {
  int64_t i = 0;
#if defined(__AVX512F__) || defined(__AVX2__)
  if constexpr (sizeof(X) == sizeof(typename S::Scalar)) {
    if (stream) {
      constexpr int64_t vector_bytes = sizeof(typename S::F);
      for (; i < n && (uintptr_t)(out + i) % vector_bytes; ++i) out[i] = made[i];
      for (; i + S::W <= n; i += S::W) {
#ifdef __AVX512F__
        _mm512_stream_si512((__m512i*)(out + i), (__m512i)S::load(made + i));
#else
        _mm256_stream_si256((__m256i*)(out + i), (__m256i)S::load(made + i));
#endif
      }
    }
  }
#else
  (void)stream;
#endif
  for (; i + S::W <= n; i += S::W) store_as<S>(out + i, S::load(made + i));
  for (; i < n; ++i) from_scalar(made[i], out[i]);
}

// Whether vectors of this kind can be written past the caches.
template <class S, class X>
constexpr bool can_stream() {
#if defined(__AVX512F__) || defined(__AVX2__)
  return sizeof(X) == sizeof(typename S::Scalar) && sizeof(typename S::F) >= 32;
#else
  return false;
#endif
}

// One vector past the caches, to an address that is a multiple of its size.
template <class S, class X>
FASTCTC_INLINE void stream_as(X* p, typename S::F x) {
#if defined(__AVX512F__)
  if constexpr (can_stream<S, X>() && sizeof(typename S::F) == 64) return _mm512_stream_si512((__m512i*)p, (__m512i)x);
#elif defined(__AVX2__)
  if constexpr (can_stream<S, X>() && sizeof(typename S::F) == 32) return _mm256_stream_si256((__m256i*)p, (__m256i)x);
#endif
  store_as<S>(p, x);
}

// After the last streamed row: makes them visible before anything that follows.
FASTCTC_INLINE void finish_streaming() {
#if defined(__AVX512F__) || defined(__AVX2__)
  _mm_sfence();
#endif
}

// n < W values, the other lanes filled
template <class S, class X>
FASTCTC_INLINE typename S::F load_part(const X* p, int64_t n, typename S::Scalar fill) {
#ifdef __AVX512F__
  if constexpr (S::W == 16) {
    const __mmask16 known = (__mmask16)((1u << n) - 1);
    if constexpr (sizeof(X) == 4) return (typename S::F)_mm512_mask_loadu_ps(_mm512_set1_ps(fill), known, p);
    return (typename S::F)_mm512_mask_mov_ps(_mm512_set1_ps(fill), known, widen<X>(_mm256_maskz_loadu_epi16(known, p)));
  }
#elif defined(__AVX2__)
  if constexpr (S::W == 8 && sizeof(X) == 4) {
    const __m256i known = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    return (typename S::F)_mm256_blendv_ps(_mm256_set1_ps(fill), _mm256_maskload_ps(p, known), (__m256)known);
  }
#endif
  typename S::Scalar lanes[S::W];
  for (int i = 0; i < S::W; ++i) lanes[i] = i < n ? to_scalar(p[i]) : fill;
  return S::load(lanes);
}

template <class S, class X>
FASTCTC_INLINE void store_part(X* p, int64_t n, typename S::F x) {
  typename S::Scalar lanes[S::W];
  S::store(lanes, x);
  for (int i = 0; i < n; ++i) from_scalar(lanes[i], p[i]);
}

// Calls body(vectors, storage type), the types as values of pointers. SF and SD: the target's vectors of float and of
// double; dtype as in fastctc::DType.
template <class SF, class SD, class Body>
void with_types(int dtype, Body body) {
  switch (dtype) {
    case 0:
      return body((SF*)nullptr, (Float16*)nullptr);
    case 1:
      return body((SF*)nullptr, (BFloat16*)nullptr);
    case 2:
      return body((SF*)nullptr, (float*)nullptr);
    default:
      return body((SD*)nullptr, (double*)nullptr);
  }
}

}  // namespace
