// Label posteriors added up per class, and losses over the batch.
#pragma once

#include "ctc_loss_block.cuh"
#include "ctc_loss_layout.cuh"

namespace fastctc {
namespace cuda {

constexpr int kSumThreads = 256;

// Where the posterior of a pair's label is, counted in scalars from the frame's states on: a lane's posteriors take the
// place of the first half of its label states.
__device__ __forceinline__ int posterior_at(int pair, int pairs_per_lane) { return pair + (pair & -pairs_per_lane); }

// The posteriors of one entry's pairs in one frame, in the target's order.
template <class Scalar>
__device__ __forceinline__ Scalar entry_sum(const Scalar* frame, const int* pairs_by_class, int from, int to,
                                            int pairs_per_lane) {
  Scalar sum = 0;
  for (int rank = from; rank < to; ++rank) {
    const int pair = pairs_by_class[rank];
    sum += frame[posterior_at(pair, pairs_per_lane)];
  }
  return sum;
}

// Frames [0, frames) of `states`, (frames, width), to frames t0 on of row n's sums, one frame per warp: this one is
// warp `warp` of `warps` that share them.
template <class Scalar>
__device__ __forceinline__ void sum_posteriors(const Call<Scalar>& call, const Row& row, int64_t n,
                                               const Scaled<Scalar>* states, int t0, int frames, int warp, int warps,
                                               int pairs_per_lane) {
  const int* const pairs_by_class = call.scratch.pairs_by_class + row.pairs_at;
  const int* const segments = call.scratch.segments + row.pairs_at + n;
  Scalar* const sums = call.saved.posterior_sums + call.p.shape.T * row.entries_at + int64_t(t0) * row.entries;
  for (int frame = warp; frame < frames; frame += warps) {
    const Scalar* const posteriors = reinterpret_cast<const Scalar*>(states + frame * call.plan.width);
    for (int entry = threadIdx.x % 32; entry < row.entries; entry += 32)
      sums[int64_t(frame) * row.entries + entry] =
          entry_sum(posteriors, pairs_by_class, segments[entry], segments[entry + 1], pairs_per_lane);
  }
}

// Blocks (r, 0), (r, 1), ... share row first_row + r of the batch.
template <class Scalar>
__global__ void __launch_bounds__(kSumThreads) sums_kernel(Call<Scalar> call, int64_t first_row) {
  const int64_t r = blockIdx.x, n = first_row + r;
  if (call.saved.outcomes[n] != Outcome::possible) return;
  const Row row = call.saved.rows[n];
  const int warps = kSumThreads / 32;
  sum_posteriors(call, row, n, call.scratch.states + r * call.p.shape.T * call.plan.width, 0, row.frames,
                 int(blockIdx.y) * warps + int(threadIdx.x / 32), int(gridDim.y) * warps, call.plan.pairs_per_lane);
}

// What a row's loss is multiplied by in the reduction.
__device__ __forceinline__ double reduction_weight(const CtcLossCudaParams& p, int64_t n) {
  if (p.reduction != Reduction::mean) return 1;
  return 1.0 / (double(p.shape.N) * double(at_least<int64_t>(p.target_lengths[n], 1)));
}

// One block for the batch: the losses as the caller wants them, and the rows' faults.
template <class Scalar>
__global__ void __launch_bounds__(kSumThreads) loss_kernel(Call<Scalar> call) {
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
