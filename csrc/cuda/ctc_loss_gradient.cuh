// The gradient: grad_out * reduction weight * (softmax or exp(score) - posterior), in one pass over the scores.
#pragma once

#include "ctc_loss_rows.cuh"
#include "ctc_loss_sums.cuh"

namespace fastctc {
namespace cuda {

// Classes of a row that a group handles between two synchronisations: as many as its part of the shared memory has room
// for, less those before the first 16-byte boundary.
template <int threads>
struct Chunk {
  static constexpr int kRoom = threads == 8 ? 72 : threads == 32 ? 512 : 2048;
};

// Writes classes [first, first + size), of which those outside of [0, C) do not exist. `first` is where a 16-byte
// boundary is, if `aligned`.
template <class X, class Scalar>
__device__ __forceinline__ void store_packet(X* row, int first, int C, bool aligned,
                                             const Scalar (&g)[Packet<X>::kSize]) {
  Packet<X> packet;
#pragma unroll
  for (int k = 0; k < Packet<X>::kSize; ++k) from_scalar(g[k], packet.x[k]);
  if (aligned && first >= 0 && first + Packet<X>::kSize <= C) {
    *reinterpret_cast<Packet<X>*>(row + first) = packet;
    return;
  }
#pragma unroll
  for (int k = 0; k < Packet<X>::kSize; ++k)
    if (first + k >= 0 && first + k < C) row[first + k] = packet.x[k];
}

// `size` scalars of shared memory, from a multiple of 16 bytes on.
template <class Scalar, int size>
__device__ __forceinline__ void load_shared(const Scalar* from, Scalar (&to)[size]) {
  constexpr int per_packet = Packet<Scalar>::kSize;
#pragma unroll
  for (int i = 0; i < size; i += per_packet) {
    const Packet<Scalar> packet = *reinterpret_cast<const Packet<Scalar>*>(from + i);
#pragma unroll
    for (int k = 0; k < per_packet; ++k) to[i + k] = packet.x[k];
  }
}

template <int threads, class X>
__device__ void fill_row(X* row, int C, typename ComputeType<X>::type value) {
  constexpr int size = Packet<X>::kSize;
  typename ComputeType<X>::type values[size];
#pragma unroll
  for (int k = 0; k < size; ++k) values[k] = value;
  for (int first = RowGroup<threads>::lane() * size - misalignment(row); first < C; first += threads * size)
    store_packet(row, first, C, true, values);
}

// One frame's gradient is exp(score - base) * scale, if with_scores, less weight * posterior.
template <class Scalar>
struct GradientFrame {
  Scalar base, scale, weight;
  bool with_scores;
  const Scalar* sums;  // per entry
  const int* entry_class;
  int entries, blank_entry;
};

// `subtrahend`: kRoom scalars of shared memory for this group alone, at a multiple of 16 bytes.
template <int threads, class X, class Scalar>
__device__ void write_gradient(const GradientFrame<Scalar>& frame, const X* scores, X* grad, int C, bool live,
                               Scalar* subtrahend, Scalar* shared) {
  using Group = RowGroup<threads>;
  constexpr int size = Packet<X>::kSize, room = Chunk<threads>::kRoom;
  const int lane = Group::lane();
  Scalar of_labels = 0;
  for (int entry = lane; entry < frame.entries; entry += threads) of_labels += frame.sums[entry];
  of_labels = Group::reduce(of_labels, shared, Sum{});
  const Scalar of_blank = of_labels < Scalar(1) ? Scalar(1) - of_labels : Scalar(0);

  const int shift = live ? misalignment(scores) : 0;
  const bool aligned = live && misalignment(grad) == shift;
  // Every group of the block goes round as often as all others do.
  for (int begin = -shift; begin < C; begin += room) {
    for (int i = lane; i < room; i += threads) subtrahend[i] = Scalar(0);
    Group::sync();
    for (int entry = lane; entry < frame.entries; entry += threads) {
      if (entry == 0 && frame.blank_entry != 0) continue;  // the blank is among the labels
      const int at = frame.entry_class[entry] - begin;
      const Scalar posterior = frame.sums[entry] + (entry == frame.blank_entry ? of_blank : Scalar(0));
      if (at >= 0 && at < room) subtrahend[at] = posterior * frame.weight;
    }
    Group::sync();
    for (int at = lane * size; live && at < room && begin + at < C; at += threads * size) {
      const int first = begin + at;
      Scalar g[size], less[size];
      load_shared(subtrahend + at, less);
      if (frame.with_scores) {
        load_packet(scores, first, C, g);
#pragma unroll
        for (int k = 0; k < size; ++k) g[k] = exp_value(g[k] - frame.base) * frame.scale - less[k];
      } else {
#pragma unroll
        for (int k = 0; k < size; ++k) g[k] = Scalar(0) - less[k];
      }
      store_packet(grad, first, C, aligned, g);
    }
    Group::sync();
  }
}

// What multiplies row n's gradient.
template <class Scalar>
__device__ __forceinline__ double gradient_weight(const CtcLossCudaParams& p, int64_t n) {
  double weight = reduction_weight(p, n);
  if (p.grad_out) weight *= double(static_cast<const Scalar*>(p.grad_out)[p.reduction == Reduction::none ? n : 0]);
  return weight;
}

// A group of threads per frame and row, in the order in which they lie in memory; rows first_row and the `rows` from
// there on.
template <class X, int threads>
__global__ void __launch_bounds__(kRowThreads, sizeof(X) == 8 ? 2 : 4)
    gradient_kernel(Call<typename ComputeType<X>::type> call, int64_t first_row, unsigned rows) {
  using Scalar = typename ComputeType<X>::type;
  using Group = RowGroup<threads>;
  constexpr int room = Chunk<threads>::kRoom;
  FASTCTC_SHARED(Scalar, shared, kRowThreads / 32);
  FASTCTC_SHARED(Packet<Scalar>, subtrahends, Group::kPerBlock * room / Packet<Scalar>::kSize);
  const CtcLossCudaParams& p = call.p;
  const unsigned item = blockIdx.x * Group::kPerBlock + threadIdx.x / threads;
  const int t = int(item / rows);
  const int64_t n = first_row + item % rows;
  const int C = int(p.shape.C);
  const bool exists = t < p.shape.T;
  if (Group::kBlock && !exists) return;
  Row row{};
  Outcome outcome = Outcome::impossible;
  X* grad = nullptr;
  if (exists) {
    row = call.saved.rows[n];
    outcome = call.saved.outcomes[n];
    grad = static_cast<X*>(p.grad) + t * p.grad_stride_t + n * p.grad_stride_n;
  }
  const bool live = exists && t < row.frames && outcome == Outcome::possible;
  if (exists && !live) {
    const bool zero = t >= row.frames || (outcome == Outcome::impossible && p.zero_infinity);
    fill_row<threads>(grad, C, zero ? Scalar(0) : not_a_number(Scalar()));
  }
  if (Group::kBlock && !live) return;

  GradientFrame<Scalar> frame{};
  const X* scores = nullptr;
  if (live) {
    const double weight = gradient_weight<Scalar>(p, n);
    scores = static_cast<const X*>(p.scores) + t * p.scores_stride_t + n * p.scores_stride_n;
    frame.weight = Scalar(weight);
    frame.scale = Scalar(weight);
    frame.with_scores = p.from_logits || !p.true_grad;
    if (p.from_logits) {
      frame.base = call.saved.row_base[n * p.shape.T + t];
      frame.scale *= call.saved.row_scale[n * p.shape.T + t];
    }
    frame.sums = call.saved.posterior_sums + call.plan.frames * row.entries_at + int64_t(t) * row.entries;
    frame.entry_class = call.saved.entry_class + row.pairs_at;
    frame.entries = row.entries;
    frame.blank_entry = row.blank_entry;
  }
  Scalar* const subtrahend = reinterpret_cast<Scalar*>(subtrahends) + threadIdx.x / threads * room;
  write_gradient<threads>(frame, scores, grad, C, live, subtrahend, shared);
}

}  // namespace cuda
}  // namespace fastctc
