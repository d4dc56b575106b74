// One pass over the scores: each frame's softmax, its blank, and its best classes. A warp or a block for each frame.
//
// Classes whose score is above that of the last of the best so far go into a buffer, which is sorted when it is full.
// So a row is read once, however long it is, and most of its classes are looked at with one comparison.
#pragma once

#include "beam_search_layout.cuh"
#include "ctc_loss_rows.cuh"

namespace fastctc {
namespace cuda {

constexpr int kFrameThreads = 128;
constexpr int kAhead = 4;  // scores that a thread asks for at a time

// `threads` of the block (a warp, or all) collect the best classes of one frame in `room` places.
template <class Scalar, int threads, int room>
struct BestClasses {
  using Group = RowGroup<threads>;
  static constexpr int kWarps = threads / 32;
  static_assert(room > kAhead * threads && (room & (room - 1)) == 0, "sorted as a whole");

  Scalar* score;  // (room)
  int* index;     // (room)
  int* counts;    // (2 * kWarps) where there is more than one warp
  int wanted;
  int held = 0;
  int turn = 0;
  Scalar least = -Scalar(positive_infinity());  // scores that are not above it are not wanted

  static __device__ __forceinline__ int lane() { return Group::lane(); }

  // Every thread brings classes, of which the first is c; those of later calls are higher ones.
  __device__ __forceinline__ void take(const Scalar (&x)[kAhead], int c) {
    if (held + kAhead * threads > room) settle();
#pragma unroll
    for (int k = 0; k < kAhead; ++k) put(x[k], c + k * threads);
  }

  __device__ __forceinline__ void put(Scalar x, int c) {
    const bool wants = x > least;
    const unsigned votes = __ballot_sync(kAllLanes, wants);
    int place = held + __popc(votes & ((1u << threadIdx.x % 32) - 1)), found = __popc(votes);
    if (kWarps > 1) {
      int* const here = counts + turn * kWarps;
      turn ^= 1;
      if (threadIdx.x % 32 == 0) here[threadIdx.x / 32] = found;
      __syncthreads();
      found = 0;
      for (int warp = 0; warp < kWarps; ++warp) {
        if (warp < int(threadIdx.x) / 32) place += here[warp];
        found += here[warp];
      }
    }
    if (wants) {
      score[place] = x;
      index[place] = c;
    }
    held += found;
  }

  // The best ones so far, in order.
  __device__ __forceinline__ void settle() {
    int size = threads;
    while (size < held) size *= 2;
    for (int k = held + lane(); k < size; k += threads) {
      score[k] = -Scalar(positive_infinity());
      index[k] = INT_MAX;
    }
    Group::sync();
    sort(size);
    held = at_most(held, wanted);
    if (held == wanted) least = score[held - 1];
  }

  // Batcher's bitonic sort. Of equal scores the lower class comes first.
  __device__ __forceinline__ void sort(int size) {
    for (int run = 2; run <= size; run *= 2)
      for (int step = run / 2; step > 0; step /= 2) {
        for (int pair = lane(); pair < size / 2; pair += threads) {
          const int a = 2 * pair - pair % step, b = a + step;
          const bool in_order = score[a] > score[b] || (score[a] == score[b] && index[a] < index[b]);
          if (in_order == ((a & run) == 0)) continue;
          const Scalar held_score = score[a];
          const int held_index = index[a];
          score[a] = score[b];
          index[a] = index[b];
          score[b] = held_score;
          index[b] = held_index;
        }
        Group::sync();
      }
  }
};

// The maximum, NaN left out, and the log of the sum of e^(score - maximum), both over the group.
template <class Scalar>
struct RowSums {
  Scalar top;
  double log_sum;
};

template <class Scalar, int threads>
__device__ RowSums<Scalar> row_sums(const Softmax<Scalar>& part, Scalar largest, bool from_logits, Scalar* shared) {
  using Group = RowGroup<threads>;
  if (!from_logits) return {Group::reduce(largest, shared, Largest{}), 0};
  Softmax<Scalar> whole = part;
  whole.raise(Group::reduce(part.largest, shared, Largest{}));
  const Scalar count = Group::reduce(whole.count, shared, Sum{}), tail = Group::reduce(whole.tail, shared, Sum{});
  // without a maximum there is no softmax
  if (!(count >= Scalar(1))) return {-Scalar(positive_infinity()), 0};
  return {whole.largest, log1p(double(count) - 1 + double(tail))};
}

template <class Scalar>
__device__ __forceinline__ Scalar precise_exp(Scalar x) {
  return exp(x);
}

// How many of the `count` sorted classes it takes to reach top_p.
template <class Scalar>
__device__ int nucleus(const BeamSearchCudaParams& p, const Scalar* score, int count, const RowSums<Scalar>& row) {
  double reached = 0;
  int kept = 0;
  for (; kept < count && reached < p.top_p; ++kept)
    reached += exp(double(score[kept] - row.top) + (p.from_logits ? -row.log_sum : double(row.top)));
  return kept;
}

template <class X, int threads, int room>
__global__ void __launch_bounds__(kFrameThreads, 4) frames_kernel(const __grid_constant__ BeamCall call) {
  using Scalar = typename ComputeType<X>::type;
  using Group = RowGroup<threads>;
  constexpr int kGroups = kFrameThreads / threads;
  FASTCTC_SHARED(Scalar, scores, kGroups * room);
  FASTCTC_SHARED(int, classes, kGroups* room);
  FASTCTC_SHARED(Scalar, sums, kFrameThreads / 32);
  FASTCTC_SHARED(int, counts, 2 * kFrameThreads / 32);
  FASTCTC_SHARED(int, found, 2 * kGroups);  // classes not too far below the first; where the blank is among all
  const BeamSearchCudaParams& p = call.p;
  const int group = int(threadIdx.x) / threads, lane = Group::lane(), C = int(p.shape.C);
  const int64_t item = int64_t(blockIdx.x) * kGroups + group, n = item / p.shape.T, t = item % p.shape.T;
  if (n >= p.shape.N) return;
  const int64_t length = p.lengths[n];
  if (length > p.shape.T || t >= length) return;
  NodeKey* const nodes = call.nodes + item * 2 * p.shape.beam_size;
  for (int i = lane; i < 2 * int(p.shape.beam_size); i += threads) nodes[i] = kFreeNode;

  const X* const row = static_cast<const X*>(p.scores) + n * p.scores_stride_n + t * p.scores_stride_t;
  BestClasses<Scalar, threads, room> best{scores + group * room, classes + group * room, counts, call.classes};
  Softmax<Scalar> part;
  Scalar largest = -Scalar(positive_infinity());
  for (int first = lane; first - lane < C; first += kAhead * threads) {
    Scalar x[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int c = first + k * threads;
      x[k] = c < C ? to_scalar(row[c]) : -Scalar(positive_infinity());
      largest = x[k] > largest ? x[k] : largest;
    }
    if (p.from_logits) part.take(x);
    best.take(x, first);
  }
  best.settle();
  const RowSums<Scalar> sums_of_row = row_sums<Scalar, threads>(part, largest, p.from_logits, sums);
  if (lane < 2) found[2 * group + lane] = best.held;
  Group::sync();
  for (int k = lane; k < best.held; k += threads) {
    const bool counts = best.score[k] - sums_of_row.top >= BeamLimits<Scalar>::kLowest;
    const bool counted = k == 0 || best.score[k - 1] - sums_of_row.top >= BeamLimits<Scalar>::kLowest;
    if (counted && !counts) found[2 * group] = k;
    if (best.index[k] == int(p.blank)) found[2 * group + 1] = k;
  }
  Group::sync();
  int kept = found[2 * group];
  const int blank_at = found[2 * group + 1];
  if (p.top_p < 1) kept = nucleus(p, best.score, kept, sums_of_row);

  char* const record = record_of<Scalar>(call, n, t);
  for (int k = lane; k < kept; k += threads) {
    if (k == blank_at) continue;
    const int place = k - (k > blank_at);
    classes_of<Scalar>(record)[place] = best.index[k];
    values_of<Scalar>(record, call.room)[place] = precise_exp(best.score[k] - sums_of_row.top);
  }
  if (lane > 0) return;
  const Scalar top = sums_of_row.top;
  FrameHead<Scalar> head;
  head.log_scale = p.from_logits ? -sums_of_row.log_sum : double(top);
  head.top = top;
  head.blank = normal(precise_exp(to_scalar(row[p.blank]) - top));
  head.tokens = kept - (blank_at < kept);
  const double top_probability = exp(head.log_scale);
  head.kind = kOrdinary;
  if (top - top != 0 || is_nan(head.log_scale))
    head.kind = kNothing;
  else if (p.blank_skip_threshold < 1 && head.blank * top_probability > p.blank_skip_threshold)
    head.kind = kOnlyBlank;
  *reinterpret_cast<FrameHead<Scalar>*>(record) = head;
}

}  // namespace cuda
}  // namespace fastctc
