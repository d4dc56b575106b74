// Checks each row's lengths and labels, and sorts its pairs by class.
#pragma once

#include "ctc_loss_block.cuh"
#include "ctc_loss_layout.cuh"

namespace fastctc {
namespace cuda {

constexpr int kPrepareThreads = 256;

struct RowLengths {
  int64_t target_at;  // where the row's labels begin, from targets on
  int64_t pairs_at, entries_at, groups_at, long_at;
  int fault;
};

// Reads all rows' target lengths for the offsets of row n. In the kernels' own memory a length that is out of range
// counts as 0; in concatenated targets one that is only above the caller's bound still takes its place.
template <class Scalar>
__device__ RowLengths check_lengths(const Call<Scalar>& call, int64_t n, long long* shared) {
  const CtcLossCudaParams& p = call.p;
  const int64_t most = p.shape.max_labels, too_many = p.targets_numel + 1;
  long long before = 0, entries = 0, groups = 0, long_rows = 0, target_at = 0, all = 0;
  for (int64_t k = threadIdx.x; k < p.shape.N; k += blockDim.x) {
    const int64_t length = p.target_lengths[k];
    const int64_t taken = at_most(at_least<int64_t>(length, 0), too_many);
    all = at_most<int64_t>(all + taken, too_many);
    if (k >= n) continue;
    target_at = at_most<int64_t>(target_at + taken, too_many);
    const int64_t labels = length >= 0 && length <= most ? length : 0;
    before += labels;
    entries += at_most(labels, p.shape.C) + 1;
    if (labels <= call.plan.longest)
      groups += row_groups(call.plan, labels);
    else
      ++long_rows;
  }
  before = reduce_block(before, shared, Sum{});
  entries = reduce_block(entries, shared, Sum{});
  groups = reduce_block(groups, shared, Sum{});
  long_rows = reduce_block(long_rows, shared, Sum{});
  target_at = reduce_block(target_at, shared, Sum{});
  all = reduce_block(all, shared, Sum{});

  const int64_t frames = p.input_lengths[n], labels = p.target_lengths[n];
  RowLengths lengths;
  lengths.target_at = p.targets_stride ? n * p.targets_stride : target_at;
  // Where the bound on all labels is too low, faulty rows, of one pair each, lie behind the others.
  lengths.pairs_at = at_most<int64_t>(before, p.shape.total_labels) + n;
  lengths.entries_at = entries;
  lengths.groups_at = groups;
  lengths.long_at = long_rows;
  const auto fault = [&] {
    if (frames > p.shape.T) return CtcLossFault::input_length_above_T;
    if (frames < 0) return CtcLossFault::input_length_negative;
    if (labels < 0) return CtcLossFault::target_length_negative;
    if (p.targets_stride && labels > p.targets_numel) return CtcLossFault::target_length_above_width;
    if (!p.targets_stride && all != p.targets_numel) return CtcLossFault::target_lengths_sum;
    if (labels > most) return CtcLossFault::target_length_above_bound;
    if (before + labels > p.shape.total_labels) return CtcLossFault::target_length_above_bound;
    return CtcLossFault::none;
  };
  lengths.fault = int(fault());
  return lengths;
}

// The stable order of the row's pairs by class, pair 0 first: a pair comes after all that have a smaller class, and
// those of its own class before it.
__device__ inline void sort_pairs(const int* pair_class, int pairs, int* pairs_by_class) {
  for (int i = threadIdx.x; i < pairs; i += blockDim.x) {
    const int own = pair_class[i];
    int rank = 0;
    for (int k = 0; k < i; ++k) rank += pair_class[k] <= own;
    for (int k = i + 1; k < pairs; ++k) rank += pair_class[k] < own;
    pairs_by_class[rank] = i;
  }
}

// Numbers the classes in that order. Returns how many there are.
__device__ inline int number_entries(const int* pair_class, const int* pairs_by_class, int pairs, int* pair_entry,
                                     int blank, int* entry_class, int* segments, long long* shared) {
  int entries = 0;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  for (int first = 0; first < pairs; first += blockDim.x) {
    const int rank = first + threadIdx.x;
    int pair = 0, own = 0;
    bool begins = false;
    if (rank < pairs) {
      pair = pairs_by_class[rank];
      own = pair_class[pair];
      begins = rank == 0 || pair_class[pairs_by_class[rank - 1]] != own;
    }
    const unsigned votes = __ballot_sync(kAllLanes, begins);
    if (lane == 0) shared[warp] = __popc(votes);
    __syncthreads();
    int entry = entries + __popc(votes & (kAllLanes >> (31 - lane))) - 1;
    for (int w = 0; w < warps; ++w) {
      if (w < warp) entry += int(shared[w]);
      entries += int(shared[w]);
    }
    __syncthreads();
    if (rank < pairs) pair_entry[pair] = entry;
    if (begins) {
      entry_class[entry] = own < 0 ? blank : own;
      segments[entry] = rank;
    }
  }
  if (threadIdx.x == 0) segments[entries] = pairs;
  return entries;
}

// One block per row.
template <class Scalar>
__global__ void __launch_bounds__(kPrepareThreads, 4) prepare_kernel(Call<Scalar> call) {
  FASTCTC_SHARED(long long, shared, kPrepareThreads / 32);
  const CtcLossCudaParams& p = call.p;
  const int64_t n = blockIdx.x;
  const RowLengths lengths = check_lengths(call, n, shared);
  int fault = lengths.fault;
  Row row{};
  row.pairs_at = lengths.pairs_at;
  row.entries_at = lengths.entries_at;
  row.groups_at = lengths.groups_at;
  row.long_at = lengths.long_at;
  row.frames = int(p.shape.T);
  if (fault != int(CtcLossFault::input_length_above_T) && fault != int(CtcLossFault::input_length_negative))
    row.frames = int(p.input_lengths[n]);
  row.labels = fault ? 0 : int(p.target_lengths[n]);

  int* const pair_class = call.scratch.pair_class + row.pairs_at;
  const int64_t* const target = p.targets + lengths.target_at;
  int outside = 0, repeats = 0;
  if (threadIdx.x == 0) pair_class[0] = -1;
  for (int i = threadIdx.x; i < row.labels; i += blockDim.x) {
    const int64_t label = target[i];
    const bool inside = label >= 0 && label < p.shape.C;
    pair_class[i + 1] = inside ? int(label) : 0;
    outside |= !inside;
    repeats += i > 0 && target[i - 1] == label;
  }
  outside = int(reduce_block<long long>(outside, shared, Largest{}));
  repeats = int(reduce_block<long long>(repeats, shared, Sum{}));
  if (!fault && outside) fault = int(CtcLossFault::label_out_of_range);
  row.feasible = !fault && row.frames > 0 && row.frames >= row.labels + repeats;

  if (row.feasible) {  // the same for all threads of the block
    const int pairs = row.labels + 1;
    int* const pairs_by_class = call.scratch.pairs_by_class + row.pairs_at;
    int* const pair_entry = call.scratch.pair_entry + row.pairs_at;
    sort_pairs(pair_class, pairs, pairs_by_class);
    __syncthreads();
    int* const entry_class = call.saved.entry_class + row.pairs_at;
    row.entries = number_entries(pair_class, pairs_by_class, pairs, pair_entry, int(p.blank), entry_class,
                                 call.scratch.segments + row.pairs_at + n, shared);
    __syncthreads();
    for (int entry = 1 + threadIdx.x; entry < row.entries; entry += blockDim.x)
      if (entry_class[entry] == p.blank) row.blank_entry = entry;
    row.blank_entry = int(reduce_block<long long>(row.blank_entry, shared, Largest{}));
  }
  if (threadIdx.x != 0) return;
  call.saved.rows[n] = row;
  call.saved.outcomes[n] = Outcome::impossible;
  call.scratch.losses[n] = !fault && row.frames == 0 && row.labels == 0 ? 0.0 : positive_infinity();
  call.scratch.faults[n] = fault;
  call.scratch.bad_scores[n] = 0;
}

}  // namespace cuda
}  // namespace fastctc
