// One vector type for every CPU target: W lanes of a float type F and of the signed integer type of the same width.
//
// GNU and Clang: their vector extension, which each target's compile flags turn into AVX-512, AVX2, SSE2 or NEON;
// the few operations those compilers do not find by themselves are intrinsics under the target's own macro.
// Elsewhere, or with FASTCTC_SIMD_ARRAY: plain arrays and loops.
//
// Everything here has internal linkage. A translation unit built for AVX-512 must not emit one inline function that the
// linker could pick for the whole library, so this file and all it includes stay clear of the C++ standard library.
#pragma once

#include <stdint.h>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#if defined(_MSC_VER) && !defined(__clang__)
#include <math.h>
#include <string.h>
#define FASTCTC_INLINE static __forceinline
#define FASTCTC_INLINE_MEMBER __forceinline
#define FASTCTC_INLINE_LAMBDA
#define FASTCTC_PREFETCH(address) ((void)(address))
#define FASTCTC_COPY memcpy
#define FASTCTC_MATH(name) name
#else
#define FASTCTC_INLINE static inline __attribute__((always_inline))
#define FASTCTC_INLINE_MEMBER inline __attribute__((always_inline))
#define FASTCTC_INLINE_LAMBDA __attribute__((always_inline))
#define FASTCTC_PREFETCH(address) __builtin_prefetch(address, 0, 2)  // into the second-level cache
#define FASTCTC_COPY __builtin_memcpy
#define FASTCTC_MATH(name) __builtin_##name
#endif

#if !defined(FASTCTC_SIMD_ARRAY) && !defined(__GNUC__)
#define FASTCTC_SIMD_ARRAY
#endif

namespace {

FASTCTC_INLINE double double_of_bits(uint64_t bits) {
  double x;
  FASTCTC_COPY(&x, &bits, sizeof x);
  return x;
}
FASTCTC_INLINE double infinity() { return double_of_bits(uint64_t(0x7ff) << 52); }
FASTCTC_INLINE double not_a_number() { return double_of_bits(uint64_t(0xfff) << 51); }

template <class Float>
struct FloatTraits;

template <>
struct FloatTraits<float> {
  using Int = int32_t;
  static constexpr int kMantissaBits = 23;
  static constexpr int kBias = 127;
};

template <>
struct FloatTraits<double> {
  using Int = int64_t;
  static constexpr int kMantissaBits = 52;
  static constexpr int kBias = 1023;
};

#ifdef FASTCTC_SIMD_ARRAY

template <class T, int W>
struct Lanes {
  T v[W];
  T operator[](int i) const { return v[i]; }
};

#define FASTCTC_LANES_OP(op)                                             \
  template <class T, int W>                                              \
  FASTCTC_INLINE Lanes<T, W> operator op(Lanes<T, W> a, Lanes<T, W> b) { \
    for (int i = 0; i < W; ++i) a.v[i] = (T)(a.v[i] op b.v[i]);          \
    return a;                                                            \
  }
FASTCTC_LANES_OP(+)
FASTCTC_LANES_OP(-)
FASTCTC_LANES_OP(*)
FASTCTC_LANES_OP(/)
#undef FASTCTC_LANES_OP

#endif

template <class Float, int Width>
struct Simd {
  using Scalar = Float;
  using Int = typename FloatTraits<Float>::Int;
  static constexpr int W = Width;

#ifdef FASTCTC_SIMD_ARRAY
  using F = Lanes<Float, W>;
  using I = Lanes<Int, W>;

  FASTCTC_INLINE F set1(Float x) {
    F r;
    for (int i = 0; i < W; ++i) r.v[i] = x;
    return r;
  }
  FASTCTC_INLINE I set1i(Int x) {
    I r;
    for (int i = 0; i < W; ++i) r.v[i] = x;
    return r;
  }
  FASTCTC_INLINE I shift_left(I a, int n) {
    for (int i = 0; i < W; ++i) a.v[i] = (Int)((uint64_t)a.v[i] << n);
    return a;
  }
  FASTCTC_INLINE I shift_right(I a, int n) {
    for (int i = 0; i < W; ++i) a.v[i] = a.v[i] >> n;
    return a;
  }
  FASTCTC_INLINE I max(I a, I b) {
    for (int i = 0; i < W; ++i) a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
    return a;
  }
  FASTCTC_INLINE I less(I a, I b) {
    for (int i = 0; i < W; ++i) a.v[i] = a.v[i] < b.v[i] ? -1 : 0;
    return a;
  }
  FASTCTC_INLINE I less(F a, F b) {
    I r;
    for (int i = 0; i < W; ++i) r.v[i] = a.v[i] < b.v[i] ? -1 : 0;
    return r;
  }
  FASTCTC_INLINE F select(I mask, F a, F b) {
    for (int i = 0; i < W; ++i) a.v[i] = mask.v[i] ? a.v[i] : b.v[i];
    return a;
  }
  FASTCTC_INLINE I select(I mask, I a, I b) {
    for (int i = 0; i < W; ++i) a.v[i] = mask.v[i] ? a.v[i] : b.v[i];
    return a;
  }
  template <class A>
  FASTCTC_INLINE A shift_up(A cur, A prev) {
    A r;
    r.v[0] = prev.v[W - 1];
    for (int i = 1; i < W; ++i) r.v[i] = cur.v[i - 1];
    return r;
  }
  template <class A>
  FASTCTC_INLINE A shift_down(A cur, A next) {
    A r;
    for (int i = 0; i + 1 < W; ++i) r.v[i] = cur.v[i + 1];
    r.v[W - 1] = next.v[0];
    return r;
  }
  template <int step>
  FASTCTC_INLINE void swap_squares(F a, F b, F& low, F& high) {
    for (int i = 0; i < W; ++i) {
      const bool second = (i & step) != 0;
      low.v[i] = second ? b.v[i - step] : a.v[i];
      high.v[i] = second ? b.v[i] : a.v[i + step];
    }
  }
#else
  typedef Float F __attribute__((vector_size(Width * sizeof(Float))));
  typedef Int I __attribute__((vector_size(Width * sizeof(Float))));

  // x - 0 is x for every x, so this is one broadcast; x + 0 is not, for -0
  FASTCTC_INLINE F set1(Float x) { return x - F{}; }
  FASTCTC_INLINE I set1i(Int x) { return x - I{}; }
  FASTCTC_INLINE I shift_left(I a, int n) { return a << n; }
  FASTCTC_INLINE I shift_right(I a, int n) { return a >> n; }
  FASTCTC_INLINE I max(I a, I b) {
#ifdef __AVX512F__
    if constexpr (sizeof(I) == 64) {
      if constexpr (W == 16)
        return (I)_mm512_max_epi32((__m512i)a, (__m512i)b);
      else
        return (I)_mm512_max_epi64((__m512i)a, (__m512i)b);
    }
#elif defined(__AVX2__)
    if constexpr (W == 8) return (I)_mm256_max_epi32((__m256i)a, (__m256i)b);
#endif
    return a > b ? a : b;
  }
  FASTCTC_INLINE F max(F a, F b) { return at_least(a, b); }
  FASTCTC_INLINE I less(I a, I b) { return a < b; }
  FASTCTC_INLINE I less(F a, F b) { return a < b; }
  FASTCTC_INLINE I select(I mask, I a, I b) {
#ifdef __AVX512F__
    if constexpr (sizeof(I) == 64) return (I)_mm512_ternarylogic_epi32((__m512i)mask, (__m512i)a, (__m512i)b, 0xca);
#elif defined(__AVX2__)
    if constexpr (sizeof(I) == 32) return (I)_mm256_blendv_epi8((__m256i)b, (__m256i)a, (__m256i)mask);
#endif
    return (a & mask) | (b & ~mask);
  }
  FASTCTC_INLINE F select(I mask, F a, F b) { return (F)select(mask, (I)a, (I)b); }

  // lane i of the result is lane i - 1 of cur; lane 0 comes from the top of prev
  template <class A>
  FASTCTC_INLINE A shift_up(A cur, A prev) {
#ifdef __AVX512F__
    if constexpr (W == 16)
      return (A)_mm512_alignr_epi32((__m512i)cur, (__m512i)prev, 15);
    else if constexpr (sizeof(A) == 64)
      return (A)_mm512_alignr_epi64((__m512i)cur, (__m512i)prev, 7);
#elif defined(__AVX2__)
    if constexpr (sizeof(A) == 32) {
      const __m256i straddle = _mm256_permute2x128_si256((__m256i)prev, (__m256i)cur, 0x21);
      return (A)_mm256_alignr_epi8((__m256i)cur, straddle, 16 - sizeof(Float));
    }
#endif
    A r;
    r[0] = prev[W - 1];
    for (int i = 1; i < W; ++i) r[i] = cur[i - 1];
    return r;
  }
  // lane i of the result is lane i + 1 of cur; the top lane comes from lane 0 of next
  template <class A>
  FASTCTC_INLINE A shift_down(A cur, A next) {
#ifdef __AVX512F__
    if constexpr (W == 16)
      return (A)_mm512_alignr_epi32((__m512i)next, (__m512i)cur, 1);
    else if constexpr (sizeof(A) == 64)
      return (A)_mm512_alignr_epi64((__m512i)next, (__m512i)cur, 1);
#elif defined(__AVX2__)
    if constexpr (sizeof(A) == 32) {
      const __m256i straddle = _mm256_permute2x128_si256((__m256i)cur, (__m256i)next, 0x21);
      return (A)_mm256_alignr_epi8(straddle, (__m256i)cur, sizeof(Float));
    }
#endif
    A r;
    for (int i = 0; i + 1 < W; ++i) r[i] = cur[i + 1];
    r[W - 1] = next[0];
    return r;
  }

  // Lanes come in squares of `step`: low gets a's even and b's even ones, high the odd ones.
  template <int step>
  FASTCTC_INLINE void swap_squares(F a, F b, F& low, F& high) {
    I first, second;
    for (int i = 0; i < W; ++i) {
      const bool upper = (i & step) != 0;
      first[i] = upper ? W + i - step : i;
      second[i] = upper ? W + i : i + step;
    }
    low = shuffle(a, b, first);
    high = shuffle(a, b, second);
  }
  FASTCTC_INLINE F shuffle(F a, F b, I index) {
#ifdef __clang__
    F r;
    for (int i = 0; i < W; ++i) r[i] = index[i] < W ? a[index[i]] : b[index[i] - W];
    return r;
#else
    return __builtin_shuffle(a, b, index);
#endif
  }
#endif

  // r[i] lane j <-> r[j] lane i
  template <int step = W / 2>
  FASTCTC_INLINE void transpose(F* r) {
    for (int i = 0; i < W; ++i)
      if (!(i & step)) swap_squares<step>(r[i], r[i + step], r[i], r[i + step]);
    if constexpr (step > 1) transpose<step / 2>(r);
  }
  // lane i of the result is op over all lanes of r[i]; half the work of W separate reductions
  template <int step = W / 2, class Op>
  FASTCTC_INLINE F reduce_rows(F* r, Op op) {
    for (int i = 0; i < step; ++i) {
      F low, high;
      swap_squares<step>(r[i], r[i + step], low, high);
      r[i] = op(low, high);
    }
    if constexpr (step > 1) return reduce_rows<step / 2>(r, op);
    return r[0];
  }

  // Tables of up to this many vectors can be looked up lane by lane; 0 where that is no faster than reading memory.
#if defined(__AVX512F__)
  static constexpr int kTableVectors = sizeof(Float) == 4 ? 8 : 0;
#elif defined(__AVX2__)
  static constexpr int kTableVectors = sizeof(Float) == 4 ? 4 : 0;
#else
  static constexpr int kTableVectors = 0;
#endif
  // lane i of the result is entry index[i] of n = 1, 2, 4 or 8 vectors of T (F or I)
  template <int n, class T>
  FASTCTC_INLINE T look_up(const T* table, I index) {
#ifdef __AVX512F__
    const __m512i at = (__m512i)index;
    if constexpr (n == 1) return (T)_mm512_permutexvar_epi32(at, (__m512i)table[0]);
    const __m512i low = _mm512_permutex2var_epi32((__m512i)table[0], at, (__m512i)table[1]);
    if constexpr (n == 2) return (T)low;
    const __m512i high = _mm512_permutex2var_epi32((__m512i)table[2], at, (__m512i)table[3]);
    const __m512i half = _mm512_mask_blend_epi32(_mm512_test_epi32_mask(at, _mm512_set1_epi32(32)), low, high);
    if constexpr (n <= 4)
      return (T)half;
    else
      return (T)_mm512_mask_blend_epi32(_mm512_test_epi32_mask(at, _mm512_set1_epi32(64)), half,
                                        (__m512i)look_up<4>(table + 4, index));
#elif defined(__AVX2__)
    const __m256i at = (__m256i)index;
    const __m256i r0 = _mm256_permutevar8x32_epi32((__m256i)table[0], at);
    if constexpr (n == 1) return (T)r0;
    // bits 3 and 4 of the index choose among the vectors
    const __m256 odd = (__m256)_mm256_slli_epi32(at, 28), upper = (__m256)_mm256_slli_epi32(at, 27);
    const __m256i r1 = _mm256_permutevar8x32_epi32((__m256i)table[1], at);
    const __m256 low = _mm256_blendv_ps((__m256)r0, (__m256)r1, odd);
    if constexpr (n == 2) return (T)low;
    const __m256i r2 = _mm256_permutevar8x32_epi32((__m256i)table[2], at);
    const __m256i r3 = _mm256_permutevar8x32_epi32((__m256i)table[3], at);
    return (T)_mm256_blendv_ps(low, _mm256_blendv_ps((__m256)r2, (__m256)r3, odd), upper);
#else
    return table[0];
#endif
  }

  // bit i: a < b in lane i, which NaN is not
  FASTCTC_INLINE unsigned less_bits(F a, F b) {
#ifdef __AVX512F__
    if constexpr (W == 16)
      return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ);
    else if constexpr (sizeof(F) == 64)
      return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_LT_OQ);
#elif defined(__AVX2__)
    if constexpr (W == 8)
      return (unsigned)_mm256_movemask_ps((__m256)less(a, b));
    else if constexpr (sizeof(F) == 32)
      return (unsigned)_mm256_movemask_pd((__m256d)less(a, b));
#endif
    const I mask = less(a, b);
    unsigned bits = 0;
    for (int i = 0; i < W; ++i) bits |= (unsigned)(mask[i] & 1) << i;
    return bits;
  }

  FASTCTC_INLINE F load(const Float* p) {
    F r;
    FASTCTC_COPY(&r, p, sizeof r);
    return r;
  }
  FASTCTC_INLINE I load(const Int* p) {
    I r;
    FASTCTC_COPY(&r, p, sizeof r);
    return r;
  }
  FASTCTC_INLINE void store(Float* p, F a) { FASTCTC_COPY(p, &a, sizeof a); }
  FASTCTC_INLINE void store(Int* p, I a) { FASTCTC_COPY(p, &a, sizeof a); }
  FASTCTC_INLINE I bits(F a) {
    I r;
    FASTCTC_COPY(&r, &a, sizeof r);
    return r;
  }
  FASTCTC_INLINE F from_bits(I a) {
    F r;
    FASTCTC_COPY(&r, &a, sizeof r);
    return r;
  }
  // the larger and the smaller of two; where either is NaN, x
  FASTCTC_INLINE F at_least(F bound, F x) {
#ifdef __AVX512F__
    if constexpr (W == 16)
      return (F)_mm512_max_ps((__m512)bound, (__m512)x);
    else if constexpr (sizeof(F) == 64)
      return (F)_mm512_max_pd((__m512d)bound, (__m512d)x);
#elif defined(__AVX2__)
    if constexpr (W == 8)
      return (F)_mm256_max_ps((__m256)bound, (__m256)x);
    else if constexpr (sizeof(F) == 32)
      return (F)_mm256_max_pd((__m256d)bound, (__m256d)x);
#endif
    return select(less(x, bound), bound, x);
  }
  FASTCTC_INLINE F at_most(F bound, F x) {
#ifdef __AVX512F__
    if constexpr (W == 16)
      return (F)_mm512_min_ps((__m512)bound, (__m512)x);
    else if constexpr (sizeof(F) == 64)
      return (F)_mm512_min_pd((__m512d)bound, (__m512d)x);
#elif defined(__AVX2__)
    if constexpr (W == 8)
      return (F)_mm256_min_ps((__m256)bound, (__m256)x);
    else if constexpr (sizeof(F) == 32)
      return (F)_mm256_min_pd((__m256d)bound, (__m256d)x);
#endif
    return select(less(bound, x), bound, x);
  }
  FASTCTC_INLINE Float sum(F a) {
    Float r = 0;
    for (int i = 0; i < W; ++i) r += a[i];
    return r;
  }
  FASTCTC_INLINE Float largest(F a) {
    Float r = a[0];
    for (int i = 1; i < W; ++i) r = r < a[i] ? a[i] : r;
    return r;
  }
  FASTCTC_INLINE Int largest(I a) {
    Int r = a[0];
    for (int i = 1; i < W; ++i) r = r < a[i] ? a[i] : r;
    return r;
  }
};

}  // namespace
