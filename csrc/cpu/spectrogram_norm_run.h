// The kernels of spectrogram normalisation for one SIMD target.
//
// Sums are taken in the compute type over a block of rows, or of vectors, and added up in double. Deviations are taken
// from the middle one of three values of the feature: whatever the mean is, they are about as large as the standard
// deviation, unless two of the three are outliers.
#pragma once

#include "simd/log.h"
#include "simd/storage.h"
#include "spectrogram_norm_kernel.h"

namespace {

using fastctc::NormSlab;

enum { kNoLog, kLog1p, kLog10 };

constexpr double kLn10 = 2.302585092994045684;
constexpr int kBlockRows = 32;  // summed up before anything becomes double

template <class S, class X, int log>
struct Norm {
  using F = typename S::F;
  using I = typename S::I;
  using Scalar = typename S::Scalar;
  static constexpr int W = S::W;

  const NormSlab& s;
  int64_t turn = s.lanes;  // lanes after which features begin anew

  const X* x_row(int64_t r) const { return (const X*)s.x + r * s.x_stride; }
  const X* grad_row(int64_t r) const { return (const X*)s.grad + r * s.grad_stride; }
  X* out_row(int64_t r) const { return (X*)s.out + r * s.out_stride; }

  // ---- v, and dv/dx
  F compress(F x) const {
    if constexpr (log == kLog1p) return Logarithm<S>::one_plus(x);
    if constexpr (log == kLog10) return Logarithm<S>::of(x + S::set1((Scalar)s.log_eps)) * S::set1((Scalar)(1 / kLn10));
    return x;
  }
  F slope(F x, F dv) const {
    if constexpr (log == kLog1p) return dv / (S::set1(1) + x);
    if constexpr (log == kLog10) return dv / (x + S::set1((Scalar)s.log_eps)) * S::set1((Scalar)(1 / kLn10));
    return dv;
  }
  Scalar value_at(int64_t r, int64_t lane) const { return compress(S::set1(to_scalar(x_row(r)[lane])))[0]; }

  FASTCTC_INLINE F middle(F a, F b, F c) {
    const I ordered = S::less(a, b);
    const F low = S::select(ordered, a, b), high = S::select(ordered, b, a);
    const F capped = S::select(S::less(high, c), high, c);
    return S::select(S::less(capped, low), low, capped);
  }

  // ---- constants of a feature: by lane, or by row
  template <bool by_lane>
  F constant(int which, int64_t feature) const {
    const Scalar* p = (const Scalar*)s.constants + which * s.constants_stride + feature;
    return by_lane ? S::load(p) : S::set1(*p);
  }
  template <bool by_lane>
  F deviation(F v, int64_t feature) const {
    return v - constant<by_lane>(fastctc::kMean, feature);
  }
  F kept(F z, int64_t lane) const {
    return s.keep ? S::select(S::load((const typename S::Int*)s.keep + lane), z, S::set1(0)) : z;
  }

  // Calls body(lane, number) for vectors that cover all lanes: the last one may overlap the one before, and there are
  // fewer than W only where there are fewer than W in all.
  template <class Body>
  void over_lanes(Body body) const {
    int64_t i = 0;
    for (; i + W <= s.lanes; i += W) body(i, W);
    if (i == s.lanes) return;
    if (i > 0)
      body(s.lanes - W, W);
    else
      body(0, (int)s.lanes);
  }
  FASTCTC_INLINE F read(const X* p, int number) { return number == W ? load_as<S>(p) : load_part<S>(p, number, 1); }
  FASTCTC_INLINE void write(X* p, int number, F z) {
    if (number == W)
      store_as<S>(p, z);
    else
      store_part<S>(p, number, z);
  }

  // ---- element by element
  // Processors look ahead by themselves, but not from one page into the next.
  FASTCTC_INLINE void fetch_ahead(const X* p) { FASTCTC_PREFETCH((const char*)p + 4096); }

  // Calls body(norm, r) for runs of values, the r-th row of `norm` each. Features whose rows lie behind each other are
  // one run: no row has a rest, and every line of memory is written whole.
  template <bool by_lane, class Body>
  void over_runs(Body body) const {
    const bool adjoin =
        s.x_stride == s.lanes && s.out_stride == s.lanes && (!s.grad || s.grad_stride == s.lanes) && s.lanes >= W;
    if (by_lane && adjoin) {
      const NormSlab one = one_run();
      return body(Norm{one, s.lanes}, 0);
    }
    for (int64_t r = 0; r < s.rows; ++r) body(*this, r);
  }
  // All rows as one, beside constants and marks that begin anew behind the last lane.
  NormSlab one_run() const {
    NormSlab run = s;
    run.rows = 1;
    run.lanes = s.rows * s.lanes;
    for (int k = 0; k < fastctc::kNormConstants; ++k)
      copy_in_turn((const Scalar*)s.constants + k * s.constants_stride, (Scalar*)s.scratch + k * s.scratch_stride);
    run.constants = s.scratch;
    run.constants_stride = s.scratch_stride;
    if (s.keep) {
      Scalar* keep = (Scalar*)s.scratch + fastctc::kNormConstants * s.scratch_stride;
      copy_in_turn((const typename S::Int*)s.keep, (typename S::Int*)keep);
      run.keep = keep;
    }
    return run;
  }
  template <class T>
  void copy_in_turn(const T* from, T* to) const {
    for (int64_t i = 0; i < s.lanes; ++i) to[i] = from[i];
    for (int64_t i = 0; i < W; ++i) to[s.lanes + i] = from[i];
  }

  // Writes value(i, lane, number) to out[i], where lane < turn. Only whole vectors go past the caches, where that is
  // wanted: a line that is written both ways has to travel to memory in between.
  template <class Value>
  void write_run(X* out, Value value) const {
    const bool streams = can_stream<S, X>() && s.stream;
    int64_t i = 0, lane = 0;
    const auto advance = [&](int number) {
      i += number;
      lane += number;
      if (lane >= turn) lane -= turn;
    };
    const int64_t past = streams ? (int64_t)((uintptr_t)out % sizeof(F)) / (int64_t)sizeof(X) : 0;
    if (past) {
      const int number = (int)(s.lanes < W - past ? s.lanes : W - past);
      store_part<S>(out, number, value(i, lane, number));
      advance(number);
    }
    for (; i + W <= s.lanes; advance(W)) {
      if (streams)
        stream_as<S>(out + i, value(i, lane, W));
      else
        store_as<S>(out + i, value(i, lane, W));
    }
    if (i < s.lanes) store_part<S>(out + i, s.lanes - i, value(i, lane, (int)(s.lanes - i)));
  }

  template <bool by_lane>
  void normalise() const {
    over_runs<by_lane>([](const Norm& norm, int64_t r) {
      const X* x = norm.x_row(r);
      norm.write_run(norm.out_row(r), [&](int64_t i, int64_t lane, int number) FASTCTC_INLINE_LAMBDA {
        const int64_t c = by_lane ? lane : r;
        fetch_ahead(x + i);
        const F d = norm.template deviation<by_lane>(norm.compress(read(x + i, number)), c);
        const F y =
            norm.template constant<by_lane>(fastctc::kA, c) * d + norm.template constant<by_lane>(fastctc::kB, c);
        return norm.kept(y, lane);
      });
    });
    if (s.stream) finish_streaming();
  }

  template <bool by_lane>
  void input_gradient() const {
    over_runs<by_lane>([](const Norm& norm, int64_t r) {
      const X* x = norm.x_row(r);
      const X* grad = norm.s.grad ? norm.grad_row(r) : nullptr;
      norm.write_run(norm.out_row(r), [&](int64_t i, int64_t lane, int number) FASTCTC_INLINE_LAMBDA {
        const int64_t c = by_lane ? lane : r;
        fetch_ahead(x + i);
        if (grad) fetch_ahead(grad + i);
        const F value = read(x + i, number);
        const F d = norm.template deviation<by_lane>(norm.compress(value), c);
        const F g = grad ? norm.kept(read(grad + i, number), lane) : S::set1(0);
        const F share =
            norm.template constant<by_lane>(fastctc::kB, c) + norm.template constant<by_lane>(fastctc::kC, c) * d;
        return norm.slope(value, norm.template constant<by_lane>(fastctc::kA, c) * (g - share));
      });
    });
    if (s.stream) finish_streaming();
  }

  // ---- sums of each lane over the rows
  // A few rows are read at a time, from end to end, and the next ones fetched meanwhile, line by line as they lie in
  // memory where they adjoin; the sums wait in the nearest cache. The lanes that are left at the end have a vector of
  // their own, which overlaps the one before with zeros.
  template <int rows, class Terms>
  void add_rows(int64_t r, Scalar* a, Scalar* b, Terms terms) const {
    const auto add = [&](int64_t i, int64_t at, int number) FASTCTC_INLINE_LAMBDA {
      F first_sum = S::load(a + at), second_sum = S::load(b + at);
      for (int k = 0; k < rows; ++k) {
        F first, second;
        terms(r + k, i, number, first, second);
        first_sum = first_sum + first;
        second_sum = second_sum + second;
      }
      S::store(a + at, first_sum);
      S::store(b + at, second_sum);
    };
    const X* next = x_row(r + 2 * rows);
    const X* next_grad = s.grad ? grad_row(r + 2 * rows) : nullptr;
    const bool adjoin = s.x_stride == s.lanes && (!s.grad || s.grad_stride == s.lanes);
    int64_t i = 0;
    for (; i + W <= s.lanes; i += W) {
      for (int k = 0; k < rows; ++k) {
        FASTCTC_PREFETCH(next + (adjoin ? rows * i + k * W : k * s.x_stride + i));
        if (s.grad) FASTCTC_PREFETCH(next_grad + (adjoin ? rows * i + k * W : k * s.grad_stride + i));
      }
      add(i, i, W);
    }
    if (i < s.lanes) add(i, i, (int)(s.lanes - i));
  }

  template <class Terms>
  void sum_over_rows(Terms terms) const {
    constexpr int kAbreast = 4;
    Scalar* a = (Scalar*)s.scratch + s.scratch_stride;
    Scalar* b = a + s.scratch_stride;
    for (int64_t begin = 0; begin < s.rows; begin += kBlockRows) {
      const int64_t end = begin + kBlockRows < s.rows ? begin + kBlockRows : s.rows;
      for (int64_t i = 0; i < s.lanes + W; ++i) a[i] = b[i] = 0;
      int64_t r = begin;
      for (; r + kAbreast <= end; r += kAbreast) add_rows<kAbreast>(r, a, b, terms);
      for (; r < end; ++r) add_rows<1>(r, a, b, terms);
      for (int64_t i = 0; i < s.lanes; ++i) s.first[i] += (double)a[i];
      for (int64_t i = 0; i < s.lanes; ++i) s.second[i] += (double)b[i];
    }
  }

  // ---- sums of one row over its lanes
  template <class Terms>
  void sum_lanes(double& first, double& second, Terms terms) const {
    constexpr int kVectors = 4, kBlock = kVectors * kBlockRows / 2;
    int64_t i = 0;
    while (i < s.lanes) {
      F a[kVectors], b[kVectors];
      for (int v = 0; v < kVectors; ++v) a[v] = b[v] = S::set1(0);
      const int64_t stop = s.lanes - i > kBlock * W ? i + kBlock * W : s.lanes;
      for (; i + kVectors * W <= stop; i += kVectors * W)
        for (int v = 0; v < kVectors; ++v) add(i + v * W, W, a[v], b[v], terms);
      for (; i + W <= stop; i += W) add(i, W, a[0], b[0], terms);
      if (i < stop) {
        add(i, (int)(stop - i), a[1], b[1], terms);
        i = stop;
      }
      first += total(a);
      second += total(b);
    }
  }
  template <class Terms>
  FASTCTC_INLINE void add(int64_t lane, int number, F& a, F& b, Terms terms) {
    F first, second;
    terms(lane, number, first, second);
    a = a + first;
    b = b + second;
  }
  template <int n>
  FASTCTC_INLINE double total(F (&a)[n]) {
    for (int v = 1; v < n; ++v) a[0] = a[0] + a[v];
    Scalar lanes[W];
    S::store(lanes, a[0]);
    double sums[2] = {0, 0};
    for (int i = 0; i < W; i += 2)
      for (int k = 0; k < 2; ++k) sums[k] += (double)lanes[i + k];
    return sums[0] + sums[1];
  }
  // z in the first `number` lanes, 0 in the others
  FASTCTC_INLINE F first_lanes(F z, int number) {
    if (number == W) return z;
    Scalar lanes[W];
    S::store(lanes, z);
    for (int i = number; i < W; ++i) lanes[i] = 0;
    return S::load(lanes);
  }

  // ---- reductions
  void moments_of_lanes() const {
    Scalar* shift = (Scalar*)s.scratch;
    const X *early = x_row(0), *mid = x_row(s.rows / 2), *late = x_row(s.rows - 1);
    over_lanes([&](int64_t i, int number) {
      const F from =
          middle(compress(read(early + i, number)), compress(read(mid + i, number)), compress(read(late + i, number)));
      if (number == W)
        S::store(shift + i, from);
      else
        store_part<S>(shift + i, number, from);
    });
    for (int64_t i = 0; i < s.lanes; ++i) s.first[i] = s.second[i] = 0;
    sum_over_rows([&](int64_t r, int64_t i, int number, F& first, F& second) FASTCTC_INLINE_LAMBDA {
      first = compress(read(x_row(r) + i, number)) - S::load(shift + i);
      second = first * first;
    });
    for (int64_t i = 0; i < s.lanes; ++i) finish_moments(s.first[i], s.second[i], shift[i], s.rows);
  }
  void moments_of_rows() const {
    for (int64_t r = 0; r < s.rows; ++r) {
      const X* x = x_row(r);
      const F from =
          middle(S::set1(value_at(r, 0)), S::set1(value_at(r, s.lanes / 2)), S::set1(value_at(r, s.lanes - 1)));
      double sum = 0, squares = 0;
      sum_lanes(sum, squares, [&](int64_t i, int number, F& first, F& second) FASTCTC_INLINE_LAMBDA {
        first = first_lanes(compress(read(x + i, number)) - from, number);
        second = first * first;
      });
      finish_moments(sum, squares, from[0], s.lanes);
      s.first[r] = sum;
      s.second[r] = squares;
    }
  }
  FASTCTC_INLINE void finish_moments(double& sum, double& squares, Scalar shift, int64_t count) {
    const double mean = sum / (double)count, spread = squares - sum * mean;
    sum = (double)shift + mean;
    squares = spread < 0 ? 0 : spread;
  }

  void gradient_sums_of_lanes() const {
    sum_over_rows([&](int64_t r, int64_t i, int number, F& first, F& second) FASTCTC_INLINE_LAMBDA {
      first = kept(read(grad_row(r) + i, number), i);
      second = first * deviation<true>(compress(read(x_row(r) + i, number)), i);
    });
  }
  void gradient_sums_of_rows() const {
    for (int64_t r = 0; r < s.rows; ++r) {
      const X* x = x_row(r);
      const X* grad = grad_row(r);
      sum_lanes(s.first[r], s.second[r], [&](int64_t i, int number, F& first, F& second) FASTCTC_INLINE_LAMBDA {
        first = first_lanes(kept(read(grad + i, number), i), number);
        second = first * first_lanes(deviation<false>(compress(read(x + i, number)), r), number);
      });
    }
  }
};

template <class S, class X, class Body>
void with_log(const NormSlab& slab, Body body) {
  switch (slab.log) {
    case kLog1p:
      return body(Norm<S, X, kLog1p>{slab});
    case kLog10:
      return body(Norm<S, X, kLog10>{slab});
    default:
      return body(Norm<S, X, kNoLog>{slab});
  }
}

// dtype as in fastctc::DType; SF and SD: the target's vectors of float and of double
template <class SF, class SD, class Body>
void with_norm(int dtype, const NormSlab& slab, Body body) {
  switch (dtype) {
    case 0:
      return with_log<SF, Float16>(slab, body);
    case 1:
      return with_log<SF, BFloat16>(slab, body);
    case 2:
      return with_log<SF, float>(slab, body);
    default:
      return with_log<SD, double>(slab, body);
  }
}

template <class SF, class SD>
void norm_moments(int dtype, const NormSlab& slab) {
  with_norm<SF, SD>(dtype, slab,
                    [&](auto norm) { slab.lanes_are_features ? norm.moments_of_lanes() : norm.moments_of_rows(); });
}
template <class SF, class SD>
void norm_normalise(int dtype, const NormSlab& slab) {
  with_norm<SF, SD>(dtype, slab, [&](auto norm) {
    slab.lanes_are_features ? norm.template normalise<true>() : norm.template normalise<false>();
  });
}
template <class SF, class SD>
void norm_gradient_sums(int dtype, const NormSlab& slab) {
  with_norm<SF, SD>(dtype, slab, [&](auto norm) {
    slab.lanes_are_features ? norm.gradient_sums_of_lanes() : norm.gradient_sums_of_rows();
  });
}
template <class SF, class SD>
void norm_input_gradient(int dtype, const NormSlab& slab) {
  with_norm<SF, SD>(dtype, slab, [&](auto norm) {
    slab.lanes_are_features ? norm.template input_gradient<true>() : norm.template input_gradient<false>();
  });
}

}  // namespace

#define FASTCTC_DEFINE_NORM_KERNELS(name, float_lanes)                              \
  const fastctc::NormKernels fastctc::name = {                                      \
      norm_moments<Simd<float, float_lanes>, Simd<double, float_lanes / 2>>,        \
      norm_normalise<Simd<float, float_lanes>, Simd<double, float_lanes / 2>>,      \
      norm_gradient_sums<Simd<float, float_lanes>, Simd<double, float_lanes / 2>>,  \
      norm_input_gradient<Simd<float, float_lanes>, Simd<double, float_lanes / 2>>, \
  };
