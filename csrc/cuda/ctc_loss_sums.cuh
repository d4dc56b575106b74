// Label posteriors added up per class, and losses over the batch.
#pragma once

#include "ctc_loss_block.cuh"
#include "ctc_loss_layout.cuh"

namespace fastctc {
namespace cuda {

constexpr int kSumThreads = 256;

// Where label posteriors are, in scalars.
struct PosteriorPlaces {
  int pairs_per_lane;
  int lane_stride;
  int64_t group_stride;
  int frame_stride;

  __device__ __forceinline__ int64_t of(int pair) const {
    const int lane = pair / pairs_per_lane;
    return lane / kGroupLanes * group_stride + lane % kGroupLanes * lane_stride + pair % pairs_per_lane;
  }
};

// The posteriors of one entry's pairs in one frame, in the target's order.
template <class Scalar>
__device__ __forceinline__ Scalar entry_sum(const Scalar* frame, const PosteriorPlaces& places,
                                            const int* pairs_by_class, int from, int to) {
  Scalar sum = 0;
  for (int rank = from; rank < to; ++rank) sum += frame[places.of(pairs_by_class[rank])];
  return sum;
}

// The first `frames` frames of `posteriors` to frames t0 on of row n's sums, one frame per warp: this one is warp
// `warp` of `warps` that share them.
template <class Scalar>
__device__ __forceinline__ void sum_posteriors(const Call<Scalar>& call, const Row& row, int64_t n,
                                               const Scalar* posteriors, const PosteriorPlaces& places, int t0,
                                               int frames, int warp, int warps) {
  const int* const pairs_by_class = call.scratch.pairs_by_class + row.pairs_at;
  const int* const segments = call.scratch.segments + row.pairs_at + n;
  Scalar* const sums = call.saved.posterior_sums + call.plan.frames * row.entries_at + int64_t(t0) * row.entries;
  for (int frame = warp; frame < frames; frame += warps) {
    const Scalar* const from = posteriors + int64_t(frame) * places.frame_stride;
    for (int entry = threadIdx.x % 32; entry < row.entries; entry += 32)
      sums[int64_t(frame) * row.entries + entry] =
          entry == 0 ? Scalar(0) : entry_sum(from, places, pairs_by_class, segments[entry], segments[entry + 1]);
  }
}

// Blocks (r, 0), (r, 1), ... share row first_row + r of the batch.
template <class Scalar>
__global__ void __launch_bounds__(kSumThreads, 4) sums_kernel(Call<Scalar> call, int64_t first_row) {
  const int64_t n = first_row + blockIdx.x;
  if (call.saved.outcomes[n] != Outcome::possible) return;
  const Row row = call.saved.rows[n];
  if (row.labels > call.plan.longest) return;
  const int warps = kSumThreads / 32, pairs = call.plan.pairs_per_lane;
  const PosteriorPlaces places = {pairs, pairs, call.plan.frames * kGroupLanes * pairs, kGroupLanes * pairs};
  sum_posteriors(call, row, n, reinterpret_cast<const Scalar*>(states_of(call, row, first_row)), places, 0, row.frames,
                 int(blockIdx.y) * warps + int(threadIdx.x / 32), int(gridDim.y) * warps);
}

// What a row's loss is multiplied by in the reduction.
__device__ __forceinline__ double reduction_weight(const CtcLossCudaParams& p, int64_t n) {
  if (p.reduction != Reduction::mean) return 1;
  return 1.0 / (double(p.shape.N) * double(at_least<int64_t>(p.target_lengths[n], 1)));
}

// One block for the batch: the losses as the caller wants them, and the rows' faults.
template <class Scalar>
__global__ void __launch_bounds__(kSumThreads, 4) loss_kernel(Call<Scalar> call) {
  FASTCTC_SHARED(double, shared, kSumThreads / 32);
  const CtcLossCudaParams& p = call.p;
  Scalar* const out = static_cast<Scalar*>(p.loss);
  double total = 0;
  for (int64_t n = threadIdx.x; n < p.shape.N; n += blockDim.x) {
    double loss = call.scratch.losses[n];
    if (p.zero_infinity && loss == positive_infinity()) loss = 0;
    if (p.reduction == Reduction::none)
      out[n] = Scalar(loss);
    else
      total += loss * reduction_weight(p, n);
    if (p.row_faults) p.row_faults[n] = call.scratch.faults[n];
  }
  if (p.reduction == Reduction::none) return;
  total = reduce_block(total, shared, Sum{});
  if (threadIdx.x == 0) out[0] = Scalar(total);
}

}  // namespace cuda
}  // namespace fastctc
