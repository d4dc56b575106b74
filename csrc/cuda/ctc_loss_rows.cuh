// One pass over the scores: softmax statistics of each frame, and the emissions of the classes that its target has.
#pragma once

#include "ctc_loss_block.cuh"
#include "ctc_loss_layout.cuh"

namespace fastctc {
namespace cuda {

constexpr int kRowThreads = 256;

// What is known of a part of a row: its maximum, how often that occurs, and the sum of exp(score - maximum) over all
// that is below it. Kept apart because a sure model's sum is 1 and a tail far below float's resolution at 1, and that
// tail is the loss. A NaN gets into the tail.
template <class Scalar>
struct Softmax {
  Scalar largest = Number<Scalar>::kLowest;
  Scalar count = 0;
  Scalar tail = 0;

  __device__ __forceinline__ void raise(Scalar to) {
    if (!(to > largest)) return;
    tail = (tail + count) * exp_value(largest - to);
    count = 0;
    largest = to;
  }
  template <int size>
  __device__ __forceinline__ void take(const Scalar (&x)[size]) {
    Scalar top = largest;
#pragma unroll
    for (int k = 0; k < size; ++k) top = x[k] > top ? x[k] : top;
    raise(top);
#pragma unroll
    for (int k = 0; k < size; ++k) {
      const Scalar p = exp_value(x[k] - largest);
      const bool is_largest = x[k] == largest;
      count += is_largest ? Scalar(1) : Scalar(0);
      tail += is_largest ? Scalar(0) : p;
    }
  }
};

// `threads` of the block work on one row together: part of a warp, or the whole block.
template <int threads>
struct RowGroup {
  static constexpr bool kBlock = threads > 32;
  static constexpr int kPerBlock = kRowThreads / threads;

  static __device__ __forceinline__ int lane() { return threadIdx.x % threads; }
  static __device__ __forceinline__ void sync() {
    if (kBlock)
      __syncthreads();
    else
      __syncwarp();
  }
  template <class T, class Combine>
  static __device__ __forceinline__ T reduce(T value, T* shared, Combine combine) {
    if constexpr (kBlock)
      return reduce_block(value, shared, combine);
    else
      return reduce_lanes<threads>(value, combine);
  }
};

// Elements between the last 16-byte boundary and the row.
template <class X>
__device__ __forceinline__ int misalignment(const X* row) {
  return int(reinterpret_cast<uintptr_t>(row) % 16 / sizeof(X));
}

// Classes [first, first + size) of a row; those outside of it become -inf. `first` is where a 16-byte boundary is.
template <class X, class Scalar>
__device__ __forceinline__ void load_packet(const X* row, int first, int C, Scalar (&x)[Packet<X>::kSize]) {
  if (first >= 0 && first + Packet<X>::kSize <= C) {
    const Packet<X> packet = *reinterpret_cast<const Packet<X>*>(row + first);
#pragma unroll
    for (int k = 0; k < Packet<X>::kSize; ++k) x[k] = to_scalar(packet.x[k]);
    return;
  }
#pragma unroll
  for (int k = 0; k < Packet<X>::kSize; ++k)
    x[k] = first + k >= 0 && first + k < C ? to_scalar(row[first + k]) : -Scalar(positive_infinity());
}

template <int threads, class X, class Scalar>
__device__ __forceinline__ Softmax<Scalar> row_softmax(const X* row, int C, bool live, Scalar* shared) {
  using Group = RowGroup<threads>;
  Softmax<Scalar> part;
  if (threads == 8) {
    // Short rows: the order of their additions does not depend on where in memory they lie.
    constexpr int size = 4;
    for (int first = Group::lane(); live && first < C; first += threads * size) {
      Scalar x[size];
#pragma unroll
      for (int k = 0; k < size; ++k) {
        const int c = first + k * threads;
        x[k] = c < C ? to_scalar(row[c]) : -Scalar(positive_infinity());
      }
      part.take(x);
    }
  } else if (live) {
    const int shift = misalignment(row);
    for (int first = Group::lane() * Packet<X>::kSize - shift; first < C; first += threads * Packet<X>::kSize) {
      Scalar x[Packet<X>::kSize];
      load_packet(row, first, C, x);
      part.take(x);
    }
  }
  part.raise(Group::reduce(part.largest, shared, Largest{}));
  part.count = Group::reduce(part.count, shared, Sum{});
  part.tail = Group::reduce(part.tail, shared, Sum{});
  return part;
}

// The largest finite score of the classes that the target has; 0 where there is none.
template <int threads, class X, class Scalar>
__device__ __forceinline__ Scalar largest_score(const X* row, const int* entry_class, int entries, Scalar* shared) {
  using Group = RowGroup<threads>;
  Scalar largest = -Scalar(positive_infinity());
  for (int entry = Group::lane(); entry < entries; entry += threads) {
    const Scalar x = to_scalar(row[entry_class[entry]]);
    if (below_infinity(x) && x > largest) largest = x;
  }
  largest = Group::reduce(largest, shared, Largest{});
  return largest >= Number<Scalar>::kLowest ? largest : Scalar(0);
}

// Whether a path can read the class of an entry at frame t: the blank where there are more frames than labels, label i
// between the frame before which it cannot have come yet and the one after which it is too late for it.
__device__ inline bool path_reads(const Row& row, int t, const int* pairs_by_class, int from, int to) {
  for (int rank = from; rank < to; ++rank) {
    const int pair = pairs_by_class[rank];
    if (pair == 0 ? row.frames > row.labels : pair >= row.labels - (row.frames - 1 - t) && pair <= t + 1) return true;
  }
  return false;
}

// Frame t of row n to the row's emissions.
template <int threads, class X, class Scalar>
__device__ void emit(const Call<Scalar>& call, const Row& row, const X* scores, int64_t n, int t, Scalar base,
                     typename Number<Scalar>::Exponent* emissions) {
  const auto& scratch = call.scratch;
  const int* const entry_class = call.saved.entry_class + row.pairs_at;
  for (int entry = RowGroup<threads>::lane(); entry < row.entries; entry += threads) {
    Scaled<Scalar> y = {Scalar(1), Number<Scalar>::kDead};
    const Scalar x = to_scalar(scores[entry_class[entry]]);
    if (below_infinity(x)) {
      y = emission(x, base);
    } else {
      const int* const segment = scratch.segments + row.pairs_at + n + entry;
      if (path_reads(row, t, scratch.pairs_by_class + row.pairs_at, segment[0], segment[1]))
        atomicOr(scratch.bad_scores + n, 1);
    }
    emissions[emission_place(row.entries, t, entry)] = pack_emission(y);
  }
}

// The frame t, past its last one, that fills up the last block of a row.
template <int threads, class Scalar>
__device__ void emit_nothing(const Row& row, int t, typename Number<Scalar>::Exponent* emissions) {
  for (int entry = RowGroup<threads>::lane(); entry < row.entries; entry += threads) {
    const Scaled<Scalar> y = {Scalar(1), entry == 0 ? 0 : Number<Scalar>::kDead};
    emissions[emission_place(row.entries, t, entry)] = pack_emission(y);
  }
}

// A group of threads per frame and row, in the order in which they lie in memory. Rows first_row and the `rows` from
// there on.
template <class X, int threads>
__global__ void __launch_bounds__(kRowThreads, sizeof(X) == 8 ? 2 : 4)
    rows_kernel(Call<typename ComputeType<X>::type> call, int64_t first_row, unsigned rows) {
  using Scalar = typename ComputeType<X>::type;
  using Group = RowGroup<threads>;
  FASTCTC_SHARED(Scalar, shared, kRowThreads / 32);
  const CtcLossCudaParams& p = call.p;
  const unsigned item = blockIdx.x * Group::kPerBlock + threadIdx.x / threads;
  const int t = int(item / rows);
  const int64_t r = item % rows, n = first_row + r;
  Row row{};
  if (t < call.plan.frames) row = call.saved.rows[n];
  const bool live = row.feasible && t < row.frames;
  auto* const emissions = emissions_of(call, row, first_row);
  if (row.feasible && t >= row.frames && t / kBlockFrames * kBlockFrames < row.frames)
    emit_nothing<threads, Scalar>(row, t, emissions);
  if (Group::kBlock && !live) return;
  const X* const scores =
      live ? static_cast<const X*>(p.scores) + t * p.scores_stride_t + n * p.scores_stride_n : nullptr;

  // Emissions are relative to the largest score of the classes that the target has, so that none need be far below.
  const Scalar base =
      largest_score<threads>(scores, call.saved.entry_class + row.pairs_at, live ? row.entries : 0, shared);
  bool usable = true;
  if (p.from_logits) {
    const Softmax<Scalar> softmax = row_softmax<threads>(scores, int(p.shape.C), live, shared);
    const Scalar sum = softmax.count + softmax.tail;
    usable = below_infinity(softmax.largest) && sum >= Scalar(1);
    if (live && Group::lane() == 0) {
      if (!usable) atomicOr(call.scratch.bad_scores + n, 1);
      call.scratch.normaliser[r * p.shape.T + t] =
          log1p(softmax.count - Scalar(1) + softmax.tail) + (softmax.largest - base);
      if (p.shape.want_grad) {
        call.saved.row_base[n * p.shape.T + t] = softmax.largest;
        call.saved.row_scale[n * p.shape.T + t] = Scalar(1) / sum;
      }
    }
  } else if (live && Group::lane() == 0) {
    call.scratch.normaliser[r * p.shape.T + t] = -base;
  }
  if (live && usable) emit<threads>(call, row, scores, n, t, base, emissions);
}

}  // namespace cuda
}  // namespace fastctc
