#include "fastctc/spectrogram_norm.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <vector>

#include "cpu_target.h"
#include "spectrogram_norm_geometry.h"
#include "thread_pool.h"
#include "workspace.h"

namespace fastctc {
namespace {

// Statistics over the batch are made of pieces of this many frames, whatever the number of threads.
constexpr int64_t kFramesPerPiece = 256;
// Frames of all utterances that are written together: no more than stay in a second-level cache.
constexpr int64_t kFramesTogether = 8;
constexpr int64_t kBytesTogether = int64_t(256) << 10;
// The fewest features that a thread takes of an utterance: a few cache lines.
constexpr int64_t kFewestFeatures = 64;
// From here on results are written past the caches: they would only push out what is still needed.
constexpr int64_t kStreamBytes = int64_t(8) << 20;
constexpr int64_t kPadding = 64;  // reals or doubles past the end of an array that kernels may read

int64_t first_bad_length(const SpectrogramNormParams& p) {
  for (int64_t n = 0; n < p.shape.n; ++n)
    if (p.lengths[n] < 0 || p.lengths[n] > p.shape.t) return n;
  return -1;
}

// Draws items from a counter on the pool's threads: body(item, thread).
void for_items(int threads, int64_t items, const std::function<void(int64_t, int)>& body) {
  std::atomic<int64_t> next{0};
  run_on_threads(int(std::min<int64_t>(threads, items)), [&](int thread) {
    for (int64_t item; (item = next.fetch_add(1)) < items;) body(item, thread);
  });
}

// What both passes have in common: `Pass` reduces the values of a slab to two numbers per feature, and makes of each
// group's numbers the constants of its features.
template <class Real>
class Pass {
 public:
  Pass(const SpectrogramNormParams& p, bool backward)
      : p_(p),
        g_(p),
        kernels_(spectrogram_norm_kernels()),
        backward_(backward),
        threads_(std::max(p.num_threads, 1)),
        features_(p.shape.b * p.shape.e * p.shape.f) {
    stride_ = features_ + kPadding;
    kernel_stride_ = std::max(features_, kNormTurn) + kPadding;
    groups_ = p.over_freq ? p.shape.b * p.shape.e : features_;
    stream_ = p.shape.n * p.shape.t * features_ * g_.size() >= kStreamBytes;
  }

  void run() {
    // Per thread: constants, scratch of the kernels, masked lanes, two numbers of each feature.
    const int64_t lanes = std::max(features_, p_.shape.t) + kPadding;
    const int64_t bytes =
        int64_t(sizeof(Real)) * (kNormConstants * stride_ + (kNormConstants + 1) * kernel_stride_ + lanes) +
        int64_t(sizeof(double)) * 2 * (features_ + kPadding);
    std::vector<Workspace> workspaces = take_workspaces(threads_, bytes);
    std::vector<Scratch> scratch;
    for (const Workspace& workspace : workspaces)
      scratch.emplace_back(workspace.data(), stride_, kernel_stride_, features_);
    scratch_ = &scratch;
    if (p_.over_batch)
      run_batch();
    else
      run_utterances();
    give_back_workspaces(std::move(workspaces));
  }

 private:
  struct Scratch {
    Scratch(void* data, int64_t stride, int64_t kernel_stride, int64_t features)
        : first(static_cast<double*>(data)),
          second(first + features + kPadding),
          constants(reinterpret_cast<Real*>(second + features + kPadding)),
          kernel(constants + kNormConstants * stride),
          keep(kernel + (kNormConstants + 1) * kernel_stride) {
      std::fill(constants, kernel, Real(0));
    }
    double *first, *second;
    Real *constants, *kernel, *keep;
  };

  // ---- statistics of each utterance: one item reads a part of its features, and writes them while they are in cache
  void run_utterances() {
    int64_t width = g_.inner();
    const int64_t planes = g_.planes();
    const int64_t wanted = (4 * threads_ + p_.shape.n * planes - 1) / std::max<int64_t>(p_.shape.n * planes, 1);
    if (threads_ > 1 && wanted > 1) {
      const int64_t unit = p_.over_freq ? p_.shape.f : kFewestFeatures;
      width = std::min(width, (width / wanted + unit) / unit * unit);
    }
    const int64_t parts = (g_.inner() + width - 1) / width;
    for_items(threads_, p_.shape.n * planes * parts, [&](int64_t item, int thread) {
      Scratch& mine = (*scratch_)[size_t(thread)];
      const int64_t n = item / (planes * parts);
      Range range;
      range.plane = item / parts % planes;
      range.begin = item % parts * width;
      range.end = std::min(range.begin + width, g_.inner());
      const int64_t feature = g_.feature(range.plane, range.begin), end = g_.feature(range.plane, range.end - 1) + 1;
      if (p_.reduce) {
        reduce(n, range, 0, p_.lengths[n], mine, mine.first + feature, mine.second + feature);
        store(n, feature, end, mine.first, mine.second);
      }
      if (!p_.out.data) return;
      set_constants(n, feature, end, mine.constants);
      write(n, range, 0, p_.shape.t, mine.constants, mine);
    });
  }

  // ---- statistics of the batch: partial ones of every piece, all of them together, then every piece again
  void run_batch() {
    const int64_t pieces =
        g_.features_inside() ? std::max<int64_t>(1, (p_.shape.t + kFramesPerPiece - 1) / kFramesPerPiece) : 1;
    if (p_.reduce) {
      const int64_t slots = p_.shape.n * pieces;
      Workspace partial(int64_t(sizeof(double)) * 2 * std::max<int64_t>(slots * features_, 1));
      double* first = static_cast<double*>(partial.data());
      double* second = first + slots * features_;
      over_pieces(pieces, false, [&](int64_t n, Range range, int64_t begin, int64_t end, int64_t slot, Scratch& mine) {
        const int64_t at = slot * features_ + g_.feature(range.plane, range.begin);
        reduce(n, range, begin, std::min(end, p_.lengths[n]), mine, first + at, second + at);
      });
      Workspace whole(int64_t(sizeof(double)) * 2 * features_);
      double* sum = static_cast<double*>(whole.data());
      merge_pieces(pieces, first, second, sum, sum + features_);
      store(0, 0, features_, sum, sum + features_);
    }
    if (!p_.out.data) return;
    Real* constants = (*scratch_)[0].constants;
    set_constants(0, 0, features_, constants);
    if (g_.frames_outside()) {
      write_by_frames(constants);
      return;
    }
    // The other way round: what was read last is still in a cache.
    over_pieces(pieces, true, [&](int64_t n, Range range, int64_t begin, int64_t end, int64_t, Scratch& mine) {
      write(n, range, begin, end, constants, mine);
    });
  }

  // Where a frame of all utterances lies together in memory, it is written together.
  void write_by_frames(const Real* constants) {
    const int64_t frame_bytes = std::max<int64_t>(p_.shape.n * features_ * g_.size(), 1);
    const int64_t together = std::clamp<int64_t>(kBytesTogether / frame_bytes, 1, kFramesTogether);
    for_items(threads_, (p_.shape.t + together - 1) / together, [&](int64_t item, int thread) {
      const int64_t begin = item * together, end = std::min(begin + together, p_.shape.t);
      for (int64_t n = 0; n < p_.shape.n; ++n)
        for (int64_t plane = 0; plane < g_.planes(); ++plane)
          write(n, Range{plane, 0, g_.inner()}, begin, end, constants, (*scratch_)[size_t(thread)]);
    });
  }

  template <class Body>
  void over_pieces(int64_t pieces, bool backwards, Body body) {
    const int64_t planes = g_.planes();
    // Where frames lie inside, features are split instead, into groups of rows.
    const int64_t width = g_.features_inside() ? g_.inner() : std::min<int64_t>(g_.inner(), kFewestFeatures);
    const int64_t parts = (g_.inner() + width - 1) / width;
    const int64_t frames = g_.features_inside() ? kFramesPerPiece : p_.shape.t;
    const int64_t items = p_.shape.n * pieces * planes * parts;
    for_items(threads_, items, [&](int64_t drawn, int thread) {
      const int64_t item = backwards ? items - 1 - drawn : drawn;
      const int64_t slot = item / (planes * parts), n = slot / pieces, piece = slot % pieces;
      Range range;
      range.plane = item / parts % planes;
      range.begin = item % parts * width;
      range.end = std::min(range.begin + width, g_.inner());
      body(n, range, piece * frames, std::min((piece + 1) * frames, p_.shape.t), slot, (*scratch_)[size_t(thread)]);
    });
  }

  int64_t frames_in(int64_t n, int64_t piece, int64_t pieces) const {
    const int64_t begin = pieces > 1 ? piece * kFramesPerPiece : 0;
    const int64_t end = pieces > 1 ? begin + kFramesPerPiece : p_.shape.t;
    return std::max<int64_t>(0, std::min(end, p_.lengths[n]) - begin);
  }

  // The numbers of each feature over all pieces, in the order of the pieces.
  void merge_pieces(int64_t pieces, const double* first, const double* second, double* all_first, double* all_second) {
    const int64_t width = 4 * kFewestFeatures;
    for_items(threads_, (features_ + width - 1) / width, [&](int64_t item, int) {
      const int64_t begin = item * width, end = std::min(begin + width, features_);
      std::fill(all_first + begin, all_first + end, 0.0);
      std::fill(all_second + begin, all_second + end, 0.0);
      double total = 0;
      for (int64_t slot = 0; slot < p_.shape.n * pieces; ++slot) {
        const double count = double(frames_in(slot / pieces, slot % pieces, pieces));
        if (count == 0) continue;
        const double* a = first + slot * features_;
        const double* b = second + slot * features_;
        total += count;
        const double share = count / total, spread = (total - count) * share;
        for (int64_t c = begin; c < end; ++c)
          if (backward_) {
            all_first[c] += a[c];
            all_second[c] += b[c];
          } else {
            merge(all_first[c], all_second[c], a[c], b[c], share, spread);
          }
      }
    });
  }

  // Adds values of a mean and a sum of squared deviations, a `share` of them all; `spread` is that of the number of
  // those before (Chan et al. 1979).
  static void merge(double& mean, double& squares, double more, double more_squares, double share, double spread) {
    const double delta = more - mean;
    mean += delta * share;
    squares += more_squares + delta * delta * spread;
  }

  // ---- one part of one utterance
  NormSlab slab(int64_t n, const Range& range, int64_t begin, int64_t end, const Real* constants, Scratch& mine) const {
    NormSlab s = g_.slab(n, range, begin, end);
    s.log = int(p_.log);
    s.log_eps = p_.log_eps;
    s.constants = constants + g_.feature(range.plane, range.begin);
    s.constants_stride = stride_;
    s.stream = stream_;
    s.scratch = mine.kernel;
    s.scratch_stride = kernel_stride_;
    return s;
  }

  void reduce(int64_t n, const Range& range, int64_t begin, int64_t end, Scratch& mine, double* first, double* second) {
    const int64_t width = range.end - range.begin;
    std::fill(first, first + width, 0.0);
    std::fill(second, second + width, 0.0);
    if (begin >= end) return;
    if (!backward_) {
      NormSlab s = slab(n, range, begin, end, mine.constants, mine);
      s.first = first;
      s.second = second;
      kernels_.moments(int(p_.dtype), s);
      return;
    }
    // Sums are of d = v - mean, and become those of h when they are stored.
    set_constants(n, g_.feature(range.plane, range.begin), g_.feature(range.plane, range.end - 1) + 1, mine.constants,
                  false);
    const Masks masks(p_, g_, n, range);
    mark_lanes(masks, range, begin, end, mine.keep);
    over_rows(masks, range, begin, end, [&](int64_t from, int64_t to, bool kept) {
      if (!kept) return;
      NormSlab s = slab(n, range, begin, end, mine.constants, mine);
      take_rows(s, from, to);
      s.keep = masks.any_lane() ? mine.keep : nullptr;
      s.first = first + (s.lanes_are_features ? 0 : from);
      s.second = second + (s.lanes_are_features ? 0 : from);
      kernels_.gradient_sums(int(p_.dtype), s);
    });
  }

  void write(int64_t n, const Range& range, int64_t begin, int64_t end, const Real* constants, Scratch& mine) {
    const int64_t valid = std::max(begin, std::min(end, p_.lengths[n]));
    if (valid < end) kernels_.clear(int(p_.dtype), slab(n, range, valid, end, constants, mine));
    if (begin >= valid) return;
    const Masks masks(p_, g_, n, range);
    mark_lanes(masks, range, begin, valid, mine.keep);
    over_rows(masks, range, begin, valid, [&](int64_t from, int64_t to, bool kept) {
      NormSlab s = slab(n, range, begin, valid, constants, mine);
      take_rows(s, from, to);
      s.keep = masks.any_lane() ? mine.keep : nullptr;
      if (backward_) {
        if (!kept) s.grad = nullptr;
        kernels_.input_gradient(int(p_.dtype), s);
      } else if (kept) {
        kernels_.normalise(int(p_.dtype), s);
      } else {
        kernels_.clear(int(p_.dtype), s);
      }
    });
  }

  // The rows of a slab that are kept, and those that are masked, in turns: body(from, to, kept), from `begin` as row 0.
  template <class Body>
  void over_rows(const Masks& masks, const Range& range, int64_t begin, int64_t end, Body body) const {
    const bool frames = g_.features_inside();
    const int64_t offset = frames ? begin : range.begin, stop = frames ? end : range.end;
    for (int64_t from = offset, to; from < stop; from = to) {
      const bool kept = frames ? masks.keeps_frame(from) : masks.keeps_feature(from);
      to = from + 1;
      if (!masks.any_row())
        to = stop;
      else
        while (to < stop && (frames ? masks.keeps_frame(to) : masks.keeps_feature(to)) == kept) ++to;
      body(from - offset, to - offset, kept);
    }
  }

  void mark_lanes(const Masks& masks, const Range& range, int64_t begin, int64_t end, Real* keep) const {
    if (!masks.any_lane()) return;
    using Integer = std::conditional_t<sizeof(Real) == 8, int64_t, int32_t>;
    const bool features = g_.features_inside();
    const int64_t lanes = features ? range.end - range.begin : end - begin;
    for (int64_t i = 0; i < lanes; ++i) {
      const bool kept = features ? masks.keeps_feature(range.begin + i) : masks.keeps_frame(begin + i);
      const Integer mark = kept ? -1 : 0;
      std::memcpy(keep + i, &mark, sizeof mark);
    }
  }

  void take_rows(NormSlab& s, int64_t from, int64_t to) const {
    const int64_t size = g_.size();
    s.x = static_cast<const char*>(s.x) + from * s.x_stride * size;
    if (s.grad) s.grad = static_cast<const char*>(s.grad) + from * s.grad_stride * size;
    if (s.out) s.out = static_cast<char*>(s.out) + from * s.out_stride * size;
    if (!s.lanes_are_features) s.constants = static_cast<const Real*>(s.constants) + from;
    s.rows = to - from;
  }

  // ---- from numbers of features to those of groups, and to constants
  int64_t group(int64_t n, int64_t feature) const {
    return (p_.over_batch ? 0 : n * groups_) + (p_.over_freq ? feature / p_.shape.f : feature);
  }
  double valid_frames(int64_t n) const {
    if (!p_.over_batch) return double(p_.lengths[n]);
    double total = 0;
    for (int64_t k = 0; k < p_.shape.n; ++k) total += double(p_.lengths[k]);
    return total;
  }
  double rstd(int64_t group) const {
    const double spread = p_.var[group] + p_.eps;
    return spread == 0 ? 0 : 1 / std::sqrt(spread);
  }

  // Features [begin, end), whole groups of them, as statistics or sums of their groups.
  void store(int64_t n, int64_t begin, int64_t end, const double* first, const double* second) {
    const double frames = valid_frames(n);
    const int64_t width = p_.over_freq ? p_.shape.f : 1;
    for (int64_t c = begin; c < end; c += width) {
      double a = 0, b = 0;
      for (int64_t k = 0; k < width && frames > 0; ++k) {
        if (backward_) {
          a += first[c + k];
          b += second[c + k];
        } else {
          merge(a, b, first[c + k], second[c + k], 1 / double(k + 1), frames * double(k) / double(k + 1));
        }
      }
      const int64_t at = group(n, c);
      if (backward_) {
        p_.grad_sum[at] = a;
        p_.grad_dot[at] = (b - a * mean_lost(at)) * rstd(at);
      } else {
        p_.mean[at] = a;
        p_.var[at] = frames > 0 ? b / (frames * double(width)) : 0;
      }
    }
  }

  void set_constants(int64_t n, int64_t begin, int64_t end, Real* constants, bool coefficients = true) const {
    double count = 1;  // sums that are given are already divided by it
    if (p_.reduce) count = std::max(valid_frames(n) * double(p_.over_freq ? p_.shape.f : 1), 1.0);
    const int64_t width = p_.over_freq ? p_.shape.f : 1;
    for (int64_t c = begin; c < end; ++c) {
      if (c > begin && c % width != 0) {
        for (int k = 0; k < kNormConstants; ++k) constants[k * stride_ + c] = constants[k * stride_ + c - 1];
        continue;
      }
      const int64_t at = group(n, c);
      constants[kMean * stride_ + c] = Real(p_.mean[at]);
      if (!coefficients) continue;
      const double lost = mean_lost(at), r = rstd(at);
      const double weight = p_.weight ? double(static_cast<const Real*>(p_.weight)[at % groups_]) : 1;
      const double bias = p_.bias ? double(static_cast<const Real*>(p_.bias)[at % groups_]) : 0;
      const double third = backward_ && p_.grad_dot ? r * p_.grad_dot[at] / count : 0;
      constants[kA * stride_ + c] = Real(r * weight);
      if (backward_)
        constants[kB * stride_ + c] = Real((p_.grad_sum ? p_.grad_sum[at] / count : 0) - third * lost);
      else
        constants[kB * stride_ + c] = Real(bias - r * weight * lost);
      constants[kC * stride_ + c] = Real(third);
    }
  }

  // The mean less what kernels take for it. An infinite one loses nothing: inf - inf would spread NaN.
  double mean_lost(int64_t group) const {
    const Real mean = Real(p_.mean[group]);
    return std::isfinite(mean) ? p_.mean[group] - double(mean) : 0;
  }

  const SpectrogramNormParams& p_;
  const Geometry g_;
  const NormKernels& kernels_;
  const bool backward_;
  const int threads_;
  const int64_t features_;
  int64_t stride_, kernel_stride_, groups_;
  bool stream_;
  std::vector<Scratch>* scratch_ = nullptr;
};

int64_t run(const SpectrogramNormParams& p, bool backward) {
  const int64_t bad = first_bad_length(p);
  if (bad >= 0) return bad;
  const SpectrogramShape& s = p.shape;
  if (s.b * s.e * s.f == 0) return -1;
  if (p.dtype == DType::float64)
    Pass<double>(p, backward).run();
  else
    Pass<float>(p, backward).run();
  return -1;
}

}  // namespace

int64_t spectrogram_norm_cpu(const SpectrogramNormParams& params) { return run(params, false); }
int64_t spectrogram_norm_gradient_cpu(const SpectrogramNormParams& params) { return run(params, true); }

}  // namespace fastctc
