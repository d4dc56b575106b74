// When each token of a result is emitted, and how surely: a block for each result, after forced alignment has found the
// best path.
//
// A token's confidence is the mean probability of its class on its frames, weighted by the posterior of that class
// there given the result, which takes a forward and a backward pass over the result's own lattice: a barrier per frame,
// and the numbers of the loss's kernels. S tokens have S + 1 pairs of states, as there. Forward states are kept for the
// frames of one segment. Where there are several, the states before each are checkpoints, and the way back goes forward
// through a segment once more.
#pragma once

#include "beam_search_team.cuh"

namespace fastctc {
namespace cuda {

constexpr int kTimesThreads = 128;

using State = Scaled<float>;
using TimesTeam = Team<float, false>;

// The results whose turn it is, of which the first is row 0 here, and their memory.
struct TimesCall {
  BeamCall search;
  int64_t first_row;
  const int64_t* paths;   // (rows, T)
  const int32_t* faults;  // (rows) ForcedAlignFault
  State* kept;            // (rows, segment, pairs) forward states of labels; confidence only
  State* checkpoints;     // (rows, segments, 2, pairs) those of blanks and labels before each; null: one segment
  State* states;          // (rows, 4, pairs); confidence only, where they are not in shared memory
  int64_t pairs;          // room for those of one result
  int segment;            // frames
  bool in_shared;
  int64_t *starts, *ends;  // from here on as in BeamAlignCudaParams
  float* confidence;
};

// First frames and the frames after the last ones of the path's labels, which it meets in their order.
__device__ inline void find_spans(const int64_t* path, int frames, int64_t blank, int labels, int64_t* starts,
                                  int64_t* ends, TimesTeam& team) {
  int before = 0;
  for (int t0 = 0; t0 < frames; t0 += kTimesThreads) {
    const int t = t0 + int(threadIdx.x);
    const int64_t c = t < frames ? path[t] : blank;
    const bool begins = c != blank && (t == 0 || path[t - 1] != c);
    int rank;
    const int found = team.rank(begins, &rank);
    const int label = before + rank + begins - 1;  // the last one to have begun
    if (begins && label < labels) starts[label] = t;
    if (c != blank && label < labels && (t + 1 == frames || path[t + 1] != c)) ends[label] = t + 1;
    before += found;
  }
}

template <class X>
struct ResultLattice {
  const TimesCall& call;
  const int64_t* labels;  // tokens of the result
  const X* scores;        // of the utterance
  const char* records;    // likewise
  int S, frames;
  State *kept, *checkpoints;
  State *blanks, *tokens, *next_blanks, *next_tokens;

  struct Frame {
    const X* row;
    double normaliser;  // log-probabilities are the scores less that
    float base;         // the best of them
  };

  __device__ __forceinline__ Frame frame(int t) const {
    using Scalar = typename ComputeType<X>::type;
    const auto head = *reinterpret_cast<const FrameHead<Scalar>*>(records + t * call.search.record_bytes);
    const double normaliser = call.search.p.from_logits ? double(head.top) - head.log_scale : 0;
    return {scores + t * call.search.p.scores_stride_t, normaliser, float(double(head.top) - normaliser)};
  }
  static __device__ __forceinline__ float log_probability(const Frame& f, int64_t c) {
    return float(double(to_scalar(f.row[c])) - f.normaliser);
  }
  static __device__ __forceinline__ State emitted(const Frame& f, int64_t c) {
    return emission(log_probability(f, c), f.base);
  }
  // Whether a path may go from label i to label i + 1 without a blank between them.
  __device__ __forceinline__ bool leaves(int i) const { return i >= 1 && i < S && labels[i - 1] != labels[i]; }

  // All dead but one blank.
  __device__ void start(int blank, State probability) {
    for (int i = threadIdx.x; i <= S; i += kTimesThreads) {
      blanks[i] = i == blank ? probability : dead<float>();
      tokens[i] = dead<float>();
    }
    __syncthreads();
  }
  __device__ __forceinline__ void swap() {
    State *const b = blanks, *const t = tokens;
    blanks = next_blanks;
    tokens = next_tokens;
    next_blanks = b;
    next_tokens = t;
    __syncthreads();
  }

  __device__ __forceinline__ bool begins_segment(int t) const { return checkpoints && t % call.segment == 0; }
  __device__ __forceinline__ State* checkpoint_of(int t) const {
    return checkpoints + t / call.segment * (2 * call.pairs);
  }
  __device__ __forceinline__ State* kept_of(int t) const { return kept + t % call.segment * call.pairs; }

  __device__ void save(State* checkpoint) const {
    for (int i = threadIdx.x; i <= S; i += kTimesThreads) {
      checkpoint[i] = blanks[i];
      checkpoint[call.pairs + i] = tokens[i];
    }
  }
  __device__ void exchange(State* checkpoint) {
    for (int i = threadIdx.x; i <= S; i += kTimesThreads) {
      const State blank = blanks[i], token = tokens[i];
      blanks[i] = checkpoint[i];
      tokens[i] = checkpoint[call.pairs + i];
      checkpoint[i] = blank;
      checkpoint[call.pairs + i] = token;
    }
    __syncthreads();
  }
  // Keeps the forward states of the segment that ends with frame t, on the way back.
  __device__ void keep_segment(int t) {
    State* const checkpoint = checkpoint_of(t);
    exchange(checkpoint);
    for (int u = t - t % call.segment; u <= t; ++u) forward(u);
    exchange(checkpoint);
  }

  __device__ void forward(int t) {
    const Frame f = frame(t);
    const State y_blank = emitted(f, call.search.p.blank);
    State* const kept_now = kept_of(t);
    for (int i = threadIdx.x; i <= S; i += kTimesThreads) {
      const State blank = blanks[i], token = tokens[i];
      next_blanks[i] = normalised(multiply(add(blank, token), y_blank));
      State state = dead<float>();
      if (i > 0) {
        state = add(token, blanks[i - 1]);
        if (leaves(i - 1)) state = add(state, tokens[i - 1]);
        state = normalised(multiply(state, emitted(f, labels[i - 1])));
      }
      next_tokens[i] = state;
      kept_now[i] = state;
    }
    swap();
  }

  // Returns this thread's part of the posterior of a class in that frame.
  __device__ float backward(int t, int64_t wanted) {
    const Frame f = frame(t);
    const State y_blank = emitted(f, call.search.p.blank);
    const State* const kept_now = kept_of(t);
    float posterior = 0;
    for (int i = threadIdx.x; i <= S; i += kTimesThreads) {
      const State blank = blanks[i];
      const State blank_before = i < S ? add(blank, tokens[i + 1]) : blank;
      next_blanks[i] = normalised(multiply(blank_before, y_blank));
      State state = dead<float>();
      if (i > 0) {
        const State before = add(tokens[i], leaves(i) ? blank_before : blank);
        if (labels[i - 1] == wanted) posterior += plain_product(before, kept_now[i]);
        state = normalised(multiply(before, emitted(f, labels[i - 1])));
      }
      next_tokens[i] = state;
    }
    swap();
    return posterior;
  }
};

// `sums` is shared memory for one value of each warp.
template <class X>
__device__ void find_confidence(ResultLattice<X>& lattice, const int64_t* starts, const int64_t* ends, float* out,
                                float* sums) {
  lattice.start(0, one<float>());
  for (int t = 0; t < lattice.frames; ++t) {
    if (lattice.begins_segment(t)) lattice.save(lattice.checkpoint_of(t));
    lattice.forward(t);
  }
  const State total = normalised(add(lattice.blanks[lattice.S], lattice.tokens[lattice.S]));
  __syncthreads();
  if (total.e < Number<float>::kDeadBelow) return;
  // dividing by the total here makes every product with a forward state a posterior
  lattice.start(lattice.S, inverse(total));
  int label = lattice.S - 1;  // the path has not yet come to its end, on the way back
  float weight = 0, weighted = 0;
  for (int t = lattice.frames - 1; t >= 0 && label >= 0; --t) {
    if (lattice.begins_segment(t + 1) && t + 1 < lattice.frames) lattice.keep_segment(t);
    const bool on_label = t < ends[label] && t >= starts[label];
    const int64_t c = lattice.labels[label];
    const float part = lattice.backward(t, on_label ? c : -1);
    if (!on_label) continue;
    const float posterior = reduce_block(part, sums, Sum{});
    weight += posterior;
    weighted += posterior * exp(ResultLattice<X>::log_probability(lattice.frame(t), c));
    if (t > starts[label]) continue;
    if (threadIdx.x == 0 && weight > 0) out[label] = weighted / weight < 1 ? weighted / weight : 1.0f;
    --label;
    weight = weighted = 0;
  }
}

template <class X>
__global__ void __launch_bounds__(kTimesThreads, 4) times_kernel(const __grid_constant__ TimesCall call) {
  FASTCTC_DYNAMIC_SHARED(memory);
  FASTCTC_SHARED(TimesTeam::Shared, shared, 1);
  FASTCTC_SHARED(float, sums, kTimesThreads / 32);
  const BeamSearchCudaParams& p = call.search.p;
  const int64_t r = blockIdx.x, row = call.first_row + r, n = row / p.nbest, T = p.shape.T;
  int64_t *const starts = call.starts + row * T, *const ends = call.ends + row * T;
  float* const confidence = call.confidence ? call.confidence + row * T : nullptr;
  for (int64_t i = threadIdx.x; i < T; i += kTimesThreads) {
    starts[i] = ends[i] = 0;
    if (confidence) confidence[i] = 0;
  }
  const int S = int(p.token_lengths[row]);
  if (S == 0 || call.faults[r] != 0) return;
  const int frames = int(p.lengths[n]);
  TimesTeam team{shared[0]};
  find_spans(call.paths + r * T, frames, p.blank, S, starts, ends, team);
  if (!confidence) return;
  const int64_t segments = (T + call.segment - 1) / call.segment;
  State* const states = call.in_shared ? reinterpret_cast<State*>(memory) : call.states + r * 4 * call.pairs;
  ResultLattice<X> lattice{call,
                           p.tokens + row * T,
                           static_cast<const X*>(p.scores) + n * p.scores_stride_n,
                           call.search.records + n * T * call.search.record_bytes,
                           S,
                           frames,
                           call.kept + r * call.segment * call.pairs,
                           call.checkpoints ? call.checkpoints + r * segments * 2 * call.pairs : nullptr,
                           states,
                           states + call.pairs,
                           states + 2 * call.pairs,
                           states + 3 * call.pairs};
  find_confidence(lattice, starts, ends, confidence, sums);
}

}  // namespace cuda
}  // namespace fastctc
