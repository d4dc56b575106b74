// What sparse algorithms ask of vectors beyond arithmetic: comparisons as bit masks, gathers, and packing of the lanes
// that a mask selects. Bit i of a mask stands for lane i.
#pragma once

#include "vec.h"

namespace {

#if defined(__GNUC__)
FASTCTC_INLINE int lowest_bit(uint32_t bits) { return __builtin_ctz(bits); }
FASTCTC_INLINE int lowest_bit(uint64_t bits) { return __builtin_ctzll(bits); }
FASTCTC_INLINE int count_bits(uint32_t bits) { return __builtin_popcount(bits); }
#else
FASTCTC_INLINE int lowest_bit(uint64_t bits) {
  int i = 0;
  while (!(bits >> i & 1)) ++i;
  return i;
}
FASTCTC_INLINE int count_bits(uint32_t bits) {
  int count = 0;
  for (; bits; bits &= bits - 1) ++count;
  return count;
}
#endif

template <class S>
struct LaneSets {
  using F = typename S::F;
  using I = typename S::I;
  using Scalar = typename S::Scalar;
  using Int = typename S::Int;
  static constexpr int W = S::W;
  static constexpr uint32_t kAll = W == 32 ? ~0u : (1u << W) - 1;
  static constexpr bool kAvx512 =
#ifdef __AVX512F__
      W == 16;
#else
      false;
#endif
  static constexpr bool kAvx2 =
#if defined(__AVX2__) && !defined(__AVX512F__)
      W == 8;
#else
      false;
#endif

  // the first n lanes; all where n >= W
  FASTCTC_INLINE uint32_t first(int64_t n) { return n >= W ? kAll : (1u << n) - 1; }

  template <class V>
  FASTCTC_INLINE uint32_t bits_of(V mask) {
    uint32_t bits = 0;
    for (int i = 0; i < W; ++i) bits |= (uint32_t)(mask[i] & 1) << i;
    return bits;
  }

  // a >= b, false where either is NaN
  FASTCTC_INLINE uint32_t not_below(F a, F b) {
#ifdef __AVX512F__
    if constexpr (kAvx512) return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GE_OQ);
#elif defined(__AVX2__)
    if constexpr (kAvx2) return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_GE_OQ));
#endif
    uint32_t bits = 0;
    for (int i = 0; i < W; ++i) bits |= (uint32_t)(a[i] >= b[i]) << i;
    return bits;
  }
  FASTCTC_INLINE uint32_t above(F a, F b) {
#ifdef __AVX512F__
    if constexpr (kAvx512) return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ);
#elif defined(__AVX2__)
    if constexpr (kAvx2) return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_GT_OQ));
#endif
    return bits_of(S::less(b, a));
  }
  FASTCTC_INLINE uint32_t equal(I a, I b) {
#ifdef __AVX512F__
    if constexpr (kAvx512) return _mm512_cmpeq_epi32_mask((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    if constexpr (kAvx2) return (uint32_t)_mm256_movemask_ps((__m256)_mm256_cmpeq_epi32((__m256i)a, (__m256i)b));
#endif
    uint32_t bits = 0;
    for (int i = 0; i < W; ++i) bits |= (uint32_t)(a[i] == b[i]) << i;
    return bits;
  }

  // those of W words whose bit is 0
  FASTCTC_INLINE uint32_t without_bit(const uint64_t* words, int bit) {
#ifdef __AVX512F__
    if constexpr (kAvx512) {
      const __m512i it = _mm512_set1_epi64((long long)((uint64_t)1 << bit));
      return (uint32_t)_mm512_testn_epi64_mask(_mm512_loadu_si512(words), it) |
             (uint32_t)_mm512_testn_epi64_mask(_mm512_loadu_si512(words + 8), it) << 8;
    }
#endif
    uint32_t bits = 0;
    for (int i = 0; i < W; ++i) bits |= (uint32_t)(~words[i] >> bit & 1) << i;
    return bits;
  }

  // a where the bit is set, else b
  FASTCTC_INLINE F pick(uint32_t bits, F a, F b) {
#ifdef __AVX512F__
    if constexpr (kAvx512) return (F)_mm512_mask_mov_ps((__m512)b, (__mmask16)bits, (__m512)a);
#endif
    Scalar x[W], y[W];
    S::store(x, a);
    S::store(y, b);
    for (int i = 0; i < W; ++i) x[i] = bits >> i & 1 ? x[i] : y[i];
    return S::load(x);
  }

  FASTCTC_INLINE F gather(const Scalar* table, I index) {
#ifdef __AVX512F__
    if constexpr (kAvx512) return (F)_mm512_i32gather_ps((__m512i)index, table, 4);
#elif defined(__AVX2__)
    if constexpr (kAvx2) return (F)_mm256_i32gather_ps(table, (__m256i)index, 4);
#endif
    Scalar lanes[W];
    for (int i = 0; i < W; ++i) lanes[i] = table[index[i]];
    return S::load(lanes);
  }
  FASTCTC_INLINE I gather(const int32_t* table, I index) {
#ifdef __AVX512F__
    if constexpr (kAvx512) return (I)_mm512_i32gather_epi32((__m512i)index, table, 4);
#elif defined(__AVX2__)
    if constexpr (kAvx2) return (I)_mm256_i32gather_epi32(table, (__m256i)index, 4);
#endif
    Int lanes[W];
    for (int i = 0; i < W; ++i) lanes[i] = table[index[i]];
    return S::load(lanes);
  }

  // Writes the selected lanes one after the other and returns how many; up to W lanes from `out` on may be overwritten.
  FASTCTC_INLINE int pack(Scalar* out, F x, uint32_t bits) {
#ifdef __AVX512F__
    if constexpr (kAvx512) {
      S::store(out, (F)_mm512_maskz_compress_ps((__mmask16)bits, (__m512)x));
      return count_bits(bits);
    }
#endif
    Scalar lanes[W];
    S::store(lanes, x);
    return pack_scalars(out, lanes, bits);
  }
  FASTCTC_INLINE int pack(Int* out, I x, uint32_t bits) {
#ifdef __AVX512F__
    if constexpr (kAvx512) {
      S::store(out, (I)_mm512_maskz_compress_epi32((__mmask16)bits, (__m512i)x));
      return count_bits(bits);
    }
#endif
    Int lanes[W];
    S::store(lanes, x);
    return pack_scalars(out, lanes, bits);
  }
  template <class T>
  FASTCTC_INLINE int pack_scalars(T* out, const T* lanes, uint32_t bits) {
    int n = 0;
    for (; bits; bits &= bits - 1) out[n++] = lanes[lowest_bit(bits)];
    return n;
  }

  // start, start + 1, ...
  FASTCTC_INLINE I count_from(Int start) {
    Int lanes[W];
    for (int i = 0; i < W; ++i) lanes[i] = start + i;
    return S::load(lanes);
  }
};

}  // namespace
