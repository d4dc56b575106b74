// The best path of one row (one utterance) of the batch. Included once by each SIMD target's translation unit.
//
// The S labels of a target give S + 1 pairs of states, as in the loss: l_i, the i-th label (i = 1..S; l_0 is dead), and
// b_i, the blank after it (i = 0..S), in arrays of their own. With y the scores of a frame:
//   q_i = max(b_i, l_i if label_i != label_(i+1))
//   b_i' = max(b_i, l_i) + y_blank         l_i' = max(l_i, q_(i-1)) + y_i
// Frame -1 with b_0 = 0 and all others -inf is the start. A back-pointer takes one bit a state: whether l_i > b_i,
// which settles b_i' and which of the two q_i is, and whether q_(i-1) > l_i; a byte of each kind for eight neighbouring
// pairs.
//
// Logits are taken as they are: what a log-softmax takes off a frame it takes off all paths alike.
//
// No path gains more in a frame than the frame's largest score. So a state that has lost more to the sum of those than
// the best path will in the end is on no best path, and where a trained model agrees with the labels few states have
// not. Such states are left out, groups of them, on a guess of how much the best path loses. Once a path is found that
// loses no more, the guess is known to be right; else there is a second one.
#pragma once

#include "forced_align_kernel.h"
#include "simd/carver.h"
#include "simd/rows.h"

namespace {

using fastctc::AlignUtterance;

constexpr int64_t kGroup = 8;                            // pairs whose back-pointers share bytes
constexpr int64_t kGroupBytes = 2;                       // l_i > b_i; q_(i-1) > l_i
constexpr double kFirstGuess = 40, kLargestGuess = 200;  // nats: one group of labels or two at a time, and several
constexpr double kHaste = 1.5;                           // what is lost may be lost faster later on
constexpr double kSurprises = 20;     // nats that the first frames may lose by chance: a label or two
constexpr int64_t kFewestGroups = 8;  // of fewer there is little to leave out
constexpr int kImpossible = 1, kNotANumber = 2;

// W scalars to doubles
template <class SD, class Scalar>
FASTCTC_INLINE typename SD::F widen(const Scalar* lanes) {
#ifdef FASTCTC_SIMD_ARRAY
  typename SD::F r;
  for (int i = 0; i < SD::W; ++i) r.v[i] = lanes[i];
  return r;
#else
  typedef Scalar Narrow __attribute__((vector_size(SD::W * sizeof(Scalar))));
  Narrow narrow;
  FASTCTC_COPY(&narrow, lanes, sizeof narrow);
  return __builtin_convertvector(narrow, typename SD::F);
#endif
}

// S: vectors of the type that X is read into; SD: the target's vectors of double, in which paths are summed.
template <class S, class SD, class X>
struct Alignment {
  using Scalar = typename S::Scalar;
  using F = typename SD::F;
  static constexpr int W = SD::W;

  AlignUtterance& u;
  int64_t width;           // S + 1 pairs, rounded up to whole groups
  int64_t row_bytes;       // back-pointers of a frame
  int64_t segment_frames;  // back-pointers are kept for this many frames; before each segment stands a checkpoint

  // per pair i: its label's class, and 0 or, where l_i must not be followed by l_(i+1), -inf
  int32_t* label;
  double* bar;
  double* state;
  double* saved;            // (segments - 1, 2 * width)
  uint8_t* back;            // (segment_frames, row_bytes)
  double* ceiling;          // sum of the largest scores of all frames up to each
  double* normaliser;       // logits only: the log of each frame's softmax sum
  Scalar* wide_row;         // float16 only: a whole frame, where that is less work than converting label by label
  bool suspicious = false;  // a score that was looked at is NaN or +inf

  double loss = 0;               // states that have lost more are left out
  int64_t live_first, live_end;  // pairs, whole groups of them, outside of which all states are -inf
  int64_t last_frame;            // the last one with live states

  explicit Alignment(AlignUtterance& utterance) : u(utterance) {}

  int64_t segments() const { return (u.T + segment_frames - 1) / segment_frames; }

  int64_t lay_out(void* workspace) {
    width = u.S / kGroup * kGroup + kGroup;
    row_bytes = width / kGroup * kGroupBytes;
    segment_frames = u.T;
    if (u.T > 1 && row_bytes > u.back_bytes / u.T) {
      // bytes of one segment and of all checkpoints together are least where the two are equal
      const int64_t balance = u.T * (int64_t)sizeof(double) * 2 * kGroup / kGroupBytes;
      segment_frames = 1;
      while (segment_frames * segment_frames < balance && segment_frames < u.T) ++segment_frames;
    }
    Carver carve{static_cast<char*>(workspace)};
    label = carve.take<int32_t>(width);
    bar = carve.take<double>(width);
    state = carve.take<double>(2 * width);
    saved = carve.take<double>((segments() - 1) * 2 * width);
    back = carve.take<uint8_t>(segment_frames * row_bytes);
    ceiling = carve.take<double>(u.T);
    normaliser = u.from_logits ? carve.take<double>(u.T) : nullptr;
    const bool whole_rows = IsFloat16<X>::value && u.C <= 16 * width;
    wide_row = whole_rows ? carve.take<Scalar>(at_least(u.C, S::W)) : nullptr;
    return carve.used;
  }

  void read_labels() {
    for (int64_t i = 0; i < width; ++i) {
      label[i] = (int32_t)(i >= 1 && i <= u.S ? u.labels[i - 1] : u.blank);
      bar[i] = leaves(i) ? 0 : -infinity();
    }
  }

  void start() {
    for (int64_t i = 0; i < 2 * width; ++i) state[i] = -infinity();
    state[0] = 0;
    live_first = 0;
    live_end = kGroup;
    suspicious = false;
  }

  // Whether label i may be followed by the next one at once.
  bool leaves(int64_t i) const { return i >= 1 && i < u.S && u.labels[i - 1] != u.labels[i]; }

  const X* row(int64_t t) const { return static_cast<const X*>(u.scores) + t * u.scores_stride; }

  // The pairs that a path can be in at frame t or the one before, whole groups of them: it moves on by one pair a frame
  // at most.
  int64_t first_pair(int64_t t) const { return at_least(0, u.S - (u.T - t)) / kGroup * kGroup; }
  int64_t end_pair(int64_t t) const { return at_most(u.S, t + 1) / kGroup * kGroup + kGroup; }

  // One frame whose scores are at `scores`. What is no number counts as -inf until a closer look is taken.
  template <bool keep, bool bounded, class Y>
  FASTCTC_INLINE_MEMBER void step(const Y* scores, int64_t t, uint8_t* pointers) {
    const F limit = SD::set1(infinity()), dead = SD::set1(-infinity());
    double y_blank = (double)to_scalar(scores[u.blank]);
    if (!(y_blank < infinity())) suspicious = true, y_blank = -infinity();
    const F blank_score = SD::set1(y_blank);
    double* const blanks = state;
    double* const labels = state + width;
    int64_t first = first_pair(t), end = end_pair(t);
    if (bounded) first = at_least(first, live_first), end = at_most(end, live_end + kGroup);
    const F floor = SD::set1(bounded ? ceiling[t] - loss : 0);
    live_first = end, live_end = first;
    F q_below = dead;
    if (first)
      q_below = SD::at_least(SD::load(labels + first - W) + SD::load(bar + first - W), SD::load(blanks + first - W));
    for (int64_t g = first; g < end; g += kGroup) {
      unsigned from_label = 0, moved = 0, dead_lanes = 0;
      for (int v = 0; v < kGroup; v += W) {
        const int64_t i = g + v;
        decltype(to_scalar(*scores)) gathered[W];
        for (int k = 0; k < W; ++k) gathered[k] = to_scalar(scores[label[i + k]]);
        F y = widen<SD>(gathered);
        if (SD::less_bits(y, limit) != (1u << W) - 1) {
          suspicious = true;
          y = SD::select(SD::less(y, limit), y, dead);
        }
        const F b = SD::load(blanks + i), l = SD::load(labels + i);
        const F q = SD::at_least(l + SD::load(bar + i), b), before = SD::shift_up(q, q_below);
        if constexpr (keep) {
          from_label |= SD::less_bits(b, l) << v;
          moved |= SD::less_bits(l, before) << v;
        }
        const F on_blank = SD::at_least(l, b) + blank_score, on_label = SD::at_least(before, l) + y;
        SD::store(blanks + i, on_blank);
        SD::store(labels + i, on_label);
        if constexpr (bounded) dead_lanes += SD::less_bits(SD::at_least(on_blank, on_label), floor) == (1u << W) - 1;
        q_below = q;
      }
      if constexpr (bounded) {
        if (dead_lanes * W == kGroup) {
          for (int v = 0; v < kGroup; v += W) SD::store(blanks + g + v, dead), SD::store(labels + g + v, dead);
        } else {
          live_first = at_most(live_first, g);
          live_end = g + kGroup;
        }
      }
      if constexpr (keep) {
        uint8_t* const at = pointers + g / kGroup * kGroupBytes;
        at[0] = (uint8_t)from_label;
        at[1] = (uint8_t)moved;
      }
    }
  }

  template <bool keep, bool bounded>
  void frames(int64_t first, int64_t end) {
    for (int64_t t = first; t < end && (!bounded || live_first < live_end); ++t) {
      last_frame = t;
      uint8_t* const pointers = back + (t - first) * row_bytes;
      if (wide_row) {
        for_each_vector<S>(row(t), u.C, [&](int64_t c, typename S::F x, int64_t) { S::store(wide_row + c, x); });
        step<keep, bounded>(wide_row, t, pointers);
      } else {
        step<keep, bounded>(row(t), t, pointers);
      }
    }
  }

  // Whether every frame has a log-softmax.
  bool normalise() {
    for (int64_t t = 0; t < u.T; t += S::W) {
      const int64_t count = at_most(S::W, u.T - t);
      Scalar base[S::W], sum[S::W], tail[S::W];
      softmax_sums<S>(row(t), u.scores_stride, count, u.C, base, sum, tail);
      for (int64_t i = 0; i < count; ++i) {
        ceiling[t + i] = base[i];
        normaliser[t + i] = base[i] + FASTCTC_MATH(log)(precise_sum(base[i], sum[i], tail[i]));
        if (normaliser[t + i] != normaliser[t + i]) return false;
      }
    }
    return true;
  }

  // Whether a score that a path can read is NaN or +inf.
  bool reads_nan() const {
    for (int64_t t = 0; t < u.T; ++t) {
      const X* const scores = row(t);
      if (u.T > u.S && !(to_scalar(scores[u.blank]) < (Scalar)infinity())) return true;
      for (int64_t i = at_least(1, u.S - (u.T - 1 - t)); i <= at_most(u.S, t + 1); ++i)
        if (!(to_scalar(scores[label[i]]) < (Scalar)infinity())) return true;
    }
    return false;
  }

  static bool bit(const uint8_t* pointers, int64_t pair) {
    return pointers[pair / kGroup * kGroupBytes] >> (pair % kGroup) & 1;
  }

  void checkpoint(double* to, const double* from) const { FASTCTC_COPY(to, from, 2 * width * sizeof *to); }

  void restore(const double* from) {
    checkpoint(state, from);
    const auto is_dead = [&](int64_t g) {
      for (int64_t i = g; i < g + kGroup; ++i)
        if (state[i] > -infinity() || state[width + i] > -infinity()) return false;
      return true;
    };
    live_first = 0, live_end = width;
    while (live_first < live_end && is_dead(live_first)) live_first += kGroup;
    while (live_first < live_end && is_dead(live_end - kGroup)) live_end -= kGroup;
  }

  // The largest scores of frames [first, end), and whether they bound all scores that a path can read: where there is a
  // NaN or a +inf among them they do not.
  bool find_largest(int64_t first, int64_t end) {
    if (u.largest) {
      FASTCTC_COPY(ceiling + first, u.largest + first, (end - first) * sizeof *ceiling);
      return true;
    }
    if (u.from_logits) return true;  // normalise() has found them
    if (u.C > 4 * width) return false;
    const typename S::F limit = S::set1((Scalar)infinity());
    for (int64_t t = first; t < end; ++t) {
      typename S::F most = S::set1(-(Scalar)infinity());
      unsigned numbers = (1u << S::W) - 1;
      for_each_vector<S>(row(t), u.C, [&](int64_t, typename S::F x, int64_t) {
        most = S::at_least(x, most);
        numbers &= S::less_bits(x, limit);
      });
      if (numbers != (1u << S::W) - 1) return false;
      ceiling[t] = S::largest(most);
    }
    return true;
  }

  // Adds them up, from those before `first`.
  bool find_ceiling(int64_t first, int64_t end) {
    if (!find_largest(first, end)) return false;
    double sum = first > 0 ? ceiling[first - 1] : 0;
    for (int64_t t = first; t < end; ++t) ceiling[t] = sum += ceiling[t];
    return true;
  }

  // Sums along paths that matter are off by no more.
  double rounding() const {
    double largest = kLargestGuess;
    for (int64_t t = 0; t < u.T; ++t) {
      const double size = ceiling[t] < 0 ? -ceiling[t] : ceiling[t];
      if (!(size <= largest)) largest = size;  // NaN as well
    }
    return 8e-16 * (double)u.T * largest;
  }

  bool ends_on_label() const { return !(state[u.S] > state[width + u.S]); }
  double best_score() const { return state[ends_on_label() ? width + u.S : u.S]; }

  template <bool bounded>
  void forward() {
    start();
    const int64_t last = segments() - 1;
    for (int64_t s = 0; s < last; ++s) {
      checkpoint(saved + s * 2 * width, state);
      frames<false, bounded>(s * segment_frames, (s + 1) * segment_frames);
    }
    frames<true, bounded>(last * segment_frames, u.T);
  }

  template <bool bounded>
  void backward() {
    int64_t pair = u.S;
    bool on_label = ends_on_label();
    const int64_t last = segments() - 1;
    for (int64_t s = last; s >= 0; --s) {
      const int64_t first = s * segment_frames, end = at_most(u.T, first + segment_frames);
      if (s != last) {
        restore(saved + s * 2 * width);
        frames<true, bounded>(first, end);
      }
      for (int64_t t = end - 1; t >= first; --t) {
        u.path[t] = on_label ? label[pair] : u.blank;
        const uint8_t* const pointers = back + (t - first) * row_bytes;
        if (on_label) {
          if (!bit(pointers + 1, pair)) continue;
          --pair;
          on_label = leaves(pair) && bit(pointers, pair);
        } else {
          on_label = bit(pointers, pair);
        }
      }
    }
  }

  // Whether the best path has been found among the states that have lost no more than it.
  bool run_bounded() {
    if (width < kFewestGroups * kGroup || !agrees_at_first() || !find_ceiling(probe(), u.T)) return false;
    const double slack = 2 * rounding();
    if (!(slack < 1)) return false;  // where scores are infinite, or too large
    double lost = lost_by_best();
    if (!(lost <= loss - slack)) {
      // what is found is a bound for the best path; where nothing is, it will be lost at the rate so far
      loss = lost < infinity() ? lost + 2 * slack : kHaste * loss * (double)u.T / (double)(last_frame + 1);
      if (loss > kLargestGuess) return false;
      lost = lost_by_best();
      if (!(lost <= loss - slack)) return false;
    }
    backward<true>();
    return true;
  }

  double lost_by_best() {
    forward<true>();
    return lost_by(u.T - 1, best_score());
  }

  // Whether the first frames let hope that no path loses too much to gain from all this.
  bool agrees_at_first() {
    if (!find_ceiling(0, probe())) return false;
    loss = kFirstGuess;
    start();
    frames<false, true>(0, probe());
    double best = -infinity();
    for (int64_t i = 0; i < 2 * width; ++i) best = state[i] > best ? state[i] : best;
    const double lost = lost_by(probe() - 1, best) - kSurprises;
    return kHaste * lost * (double)u.T / (double)probe() <= kLargestGuess;
  }
  int64_t probe() const { return (u.T + 15) / 16; }

  double lost_by(int64_t t, double score) const { return live_first < live_end ? ceiling[t] - score : infinity(); }

  void run_whole() {
    forward<false>();
    if (suspicious && !u.nan_is_impossible && reads_nan()) {
      u.fault = kNotANumber;
      return;
    }
    if (best_score() == -infinity()) {
      u.fault = kImpossible;
      return;
    }
    backward<false>();
  }

  void run() {
    lay_out(u.workspace);
    read_labels();
    if (u.from_logits && !normalise()) {
      u.fault = kNotANumber;
      return;
    }
    if (!run_bounded()) run_whole();
    if (u.fault) return;
    for (int64_t t = 0; t < u.T; ++t) {
      const Scalar score = to_scalar(row(t)[u.path[t]]);
      static_cast<Scalar*>(u.path_scores)[t] = u.from_logits ? (Scalar)(score - normaliser[t]) : score;
    }
  }
};

// Calls body with an alignment of the row's dtype, as in fastctc::DType. SF and SD: the target's vectors.
template <class SF, class SD, class Body>
void with_alignment(int dtype, AlignUtterance& u, Body body) {
  switch (dtype) {
    case 0:
      return body(Alignment<SF, SD, Float16>(u));
    case 1:
      return body(Alignment<SF, SD, BFloat16>(u));
    case 2:
      return body(Alignment<SF, SD, float>(u));
    default:
      return body(Alignment<SD, SD, double>(u));
  }
}

template <class SF, class SD>
int64_t alignment_bytes(int dtype, const AlignUtterance& u) {
  AlignUtterance measured = u;
  int64_t bytes = 0;
  with_alignment<SF, SD>(dtype, measured, [&](auto alignment) { bytes = alignment.lay_out(nullptr); });
  return bytes;
}

template <class SF, class SD>
void run_alignment(int dtype, AlignUtterance& u) {
  with_alignment<SF, SD>(dtype, u, [](auto alignment) { alignment.run(); });
}

}  // namespace

#define FASTCTC_DEFINE_FORCED_ALIGN_KERNELS(name, float_lanes)                  \
  const fastctc::ForcedAlignKernels fastctc::name = {                           \
      alignment_bytes<Simd<float, float_lanes>, Simd<double, float_lanes / 2>>, \
      run_alignment<Simd<float, float_lanes>, Simd<double, float_lanes / 2>>,   \
  };
