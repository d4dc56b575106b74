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

constexpr double kLog10E = 0.43429448190325182765, kLog10ERest = 1.0983196502167651e-17;
constexpr int kBlockRows = 32;       // summed up before anything becomes double
constexpr int kWrittenAbreast = 4;   // turns at a time
constexpr int64_t kLeastTurn = 512;  // lanes of a turn: of fewer, loops would be too short

template <class S, class X, int log>
struct Norm {
  using F = typename S::F;
  using I = typename S::I;
  using Scalar = typename S::Scalar;
  static constexpr int W = S::W;

  NormSlab s;              // a copy: no store may change it
  int64_t turn = s.lanes;  // lanes after which features begin anew
  int64_t head = 0;        // values before lane 0, which belong to the last lanes of a turn

  const X* x_row(int64_t r) const { return (const X*)s.x + r * s.x_stride; }
  const X* grad_row(int64_t r) const { return (const X*)s.grad + r * s.grad_stride; }
  X* out_row(int64_t r) const { return (X*)s.out + r * s.out_stride; }

  // ---- v, and dv/dx
  F compress(F x) const {
    if constexpr (log == kLog1p) return Logarithm<S>::one_plus(x);
    if constexpr (log == kLog10) return decimal(Logarithm<S>::of(x + S::set1((Scalar)s.log_eps)));
    return x;
  }
  // log10 from ln. A plain product might be contracted with the difference that comes next, in one place and not in
  // another, and what is the mean in all frames would no longer differ from it by 0.
  static F decimal(F ln) {
    constexpr Scalar first = (Scalar)kLog10E, rest = (Scalar)(kLog10E - (double)first + kLog10ERest);
    return ln * S::set1(first) + ln * S::set1(rest);
  }
  F slope(F x, F dv) const {
    if constexpr (log == kLog1p) return dv / (S::set1(1) + x);
    if constexpr (log == kLog10) return dv / (x + S::set1((Scalar)s.log_eps)) * S::set1((Scalar)kLog10E);
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

  // ---- rows behind each other
  // Features whose rows adjoin are one run: no row has a rest, and every line of memory is written whole.
  bool adjoin() const {
    return s.x_stride == s.lanes && (!s.out || s.out_stride == s.lanes) && (!s.grad || s.grad_stride == s.lanes) &&
           s.lanes >= W;
  }
  // All rows as one, with constants and marks for turns of a few rows. Lane 0 is the first whose result is aligned, and
  // a turn is made of whole vectors where that takes not too many rows: then so is the same vector of every turn.
  Norm one_run() const {
    const int64_t length = rows_of_turn() * s.lanes, begin = to_alignment(s.out);
    NormSlab run = s;
    run.rows = 1;
    run.lanes = s.rows * s.lanes;
    run.constants = s.scratch;
    run.constants_stride = s.scratch_stride;
    for (int k = 0; k < fastctc::kNormConstants; ++k)
      copy_in_turn((const Scalar*)s.constants + k * s.constants_stride, begin, length, scratch(k));
    if (s.keep) {
      run.keep = scratch(fastctc::kNormConstants);
      copy_in_turn((const typename S::Int*)s.keep, begin, length, (typename S::Int*)run.keep);
    }
    return Norm{run, length, begin};
  }
  int64_t rows_of_turn() const {
    int64_t rows = 1;
    while (rows * s.lanes % W || rows * s.lanes < kLeastTurn) rows *= 2;
    return rows * s.lanes <= fastctc::kNormTurn && rows * kWrittenAbreast <= s.rows ? rows : 1;
  }
  template <class T>
  void copy_in_turn(const T* from, int64_t begin, int64_t length, T* to) const {
    for (int64_t i = begin; i < s.lanes; ++i) to[i - begin] = from[i];
    for (int64_t i = 0; i < begin; ++i) to[s.lanes - begin + i] = from[i];
    for (int64_t i = s.lanes; i < length + W; ++i) to[i] = to[i - s.lanes];
  }
  FASTCTC_INLINE int64_t to_alignment(const void* p) {
    const int64_t past = (int64_t)((uintptr_t)p / sizeof(X) % W);
    return past ? W - past : 0;
  }
  Scalar* scratch(int which) const { return (Scalar*)s.scratch + which * s.scratch_stride; }

  // ---- element by element
  // Processors look ahead by themselves, but not from one page into the next.
  static constexpr int64_t kAhead = 4096 / sizeof(X);
  FASTCTC_INLINE void fetch(const X* p) { FASTCTC_PREFETCH(p); }

  // Calls body(norm, r) for runs of values, the r-th row of `norm` each.
  template <bool by_lane, class Body>
  void over_runs(Body body) const {
    if (by_lane && adjoin()) return body(one_run(), 0);
    for (int64_t r = 0; r < s.rows; ++r) body(*this, r);
  }

  // Writes value(i, lane, number, ahead) to out[i], where lane < turn and what is `ahead` of i will be read soon. Only
  // whole vectors go past the caches, where that is wanted: a line that is written both ways has to travel to memory in
  // between.
  template <class Value>
  void write_run(X* out, Value value) const {
    const int64_t begin = to_alignment(out);
    int64_t i = 0, lane = head ? turn - head : 0;
    const auto write_some = [&](int number) {
      store_part<S>(out + i, number, value(i, lane, number, kAhead));
      i += number;
      lane += number;
      if (lane >= turn) lane -= turn;
    };
    if (begin) write_some((int)(s.lanes < begin ? s.lanes : begin));
    // A vector of several turns each, which share their constants.
    constexpr int n = kWrittenAbreast;
    for (; turn % W == 0 && i + n * turn <= s.lanes; i += n * turn)
      for (int64_t j = 0; j < turn; j += W) {
        F made[n];
        for (int k = 0; k < n; ++k) made[k] = value(i + k * turn + j, j, W, (n - k) * turn + (n - 1) * j + k * W);
        for (int k = 0; k < n; ++k) write_vector(out + i + k * turn + j, made[k]);
      }
    for (; i + W <= s.lanes; i += W) {
      write_vector(out + i, value(i, lane, W, kAhead));
      lane += W;
      if (lane >= turn) lane -= turn;
    }
    if (i < s.lanes) write_some((int)(s.lanes - i));
  }
  void write_vector(X* p, F z) const {
    if (can_stream<S, X>() && s.stream)
      stream_as<S>(p, z);
    else
      store_as<S>(p, z);
  }

  template <bool by_lane>
  void normalise() const {
    over_runs<by_lane>([](const Norm& norm, int64_t r) {
      const X* x = norm.x_row(r);
      norm.write_run(norm.out_row(r), [&](int64_t i, int64_t lane, int number, int64_t ahead) FASTCTC_INLINE_LAMBDA {
        const int64_t c = by_lane ? lane : r;
        fetch(x + i + ahead);
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
      norm.write_run(norm.out_row(r), [&](int64_t i, int64_t lane, int number, int64_t ahead) FASTCTC_INLINE_LAMBDA {
        const int64_t c = by_lane ? lane : r;
        fetch(x + i + ahead);
        if (grad) fetch(grad + i + ahead);
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

  void clear() const {
    NormSlab zeros = s;
    if (s.out_stride == s.lanes) {
      zeros.rows = 1;
      zeros.lanes = s.rows * s.lanes;
    }
    const Norm norm{zeros};
    for (int64_t r = 0; r < zeros.rows; ++r)
      norm.write_run(norm.out_row(r), [](int64_t, int64_t, int, int64_t) FASTCTC_INLINE_LAMBDA { return S::set1(0); });
    if (s.stream) finish_streaming();
  }

  // ---- sums of each lane over the rows
  // Of a block of rows, the sums of two vectors at a time stay in registers, while the next block is fetched: line by
  // line as it lies in memory, where rows adjoin. terms(x, grad, lane, number, first, second) makes what is added.
  template <class Terms>
  void sum_over_rows(Terms terms) const {
    const Scalar *a = scratch(1), *b = scratch(2);
    for (int64_t begin = 0; begin < s.rows; begin += kBlockRows) {
      int64_t i = 0;
      for (; i + 2 * W <= s.lanes; i += 2 * W) sum_block<2>(begin, i, W, terms);
      if (i > 0 && i < s.lanes) {
        sum_block<2>(begin, s.lanes - 2 * W, W, terms);  // some of them again
      } else {
        for (; i < s.lanes; i += W) sum_block<1>(begin, i, s.lanes - i < W ? (int)(s.lanes - i) : W, terms);
      }
      for (i = 0; i < s.lanes; ++i) s.first[i] += (double)a[i];
      for (i = 0; i < s.lanes; ++i) s.second[i] += (double)b[i];
    }
  }
  template <int vectors, class Terms>
  void sum_block(int64_t begin, int64_t lane, int number, Terms terms) const {
    const int64_t rows = begin + kBlockRows < s.rows ? kBlockRows : s.rows - begin;
    const X *x = x_row(begin) + lane, *grad = s.grad ? grad_row(begin) + lane : x;
    const int64_t x_stride = s.x_stride, grad_stride = s.grad ? s.grad_stride : x_stride;
    const bool adjoining = x_stride == s.lanes && grad_stride == s.lanes;
    const int64_t on = rows * x_stride + (adjoining ? (rows - 1) * lane : 0);
    const X *next = x + on, *next_grad = grad + (adjoining ? on : rows * grad_stride);
    const int64_t step = adjoining ? vectors * W : x_stride, grad_step = adjoining ? vectors * W : grad_stride;
    F a[vectors], b[vectors];
    for (int v = 0; v < vectors; ++v) a[v] = b[v] = S::set1(0);
    for (int64_t r = 0; r < rows; ++r) {
      for (int v = 0; v < vectors; ++v) {
        F first, second;
        terms(x + v * W, grad + v * W, lane + v * W, number, first, second);
        a[v] = a[v] + first;
        b[v] = b[v] + second;
        fetch(next + v * W);
        if (s.grad) fetch(next_grad + v * W);
      }
      x += x_stride;
      grad += grad_stride;
      next += step;
      next_grad += grad_step;
    }
    for (int v = 0; v < vectors; ++v) {
      S::store(scratch(1) + lane + v * W, a[v]);
      S::store(scratch(2) + lane + v * W, b[v]);
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
    typename S::Int lanes[W];
    for (int i = 0; i < W; ++i) lanes[i] = i;
    return S::select(S::less(S::load(lanes), S::set1i(number)), z, S::set1(0));
  }

  // ---- reductions
  void moments_of_lanes() const {
    Scalar* shift = scratch(0);
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
    Norm shifted = *this;
    shifted.s.constants = shift;
    shifted.sum_over_rows([&](const X* x, const X*, int64_t i, int number, F& first, F& second) FASTCTC_INLINE_LAMBDA {
      first = shifted.template deviation<true>(compress(read(x, number)), i);
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
    sum_over_rows([&](const X* x, const X* grad, int64_t i, int number, F& first, F& second) FASTCTC_INLINE_LAMBDA {
      first = kept(read(grad, number), i);
      second = first * deviation<true>(compress(read(x, number)), i);
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

}  // namespace
