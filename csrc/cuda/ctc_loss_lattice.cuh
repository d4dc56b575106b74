// Forward and backward probabilities of a row at the same time, one block per row.
//
// The recursion over a target of S labels, with y the emissions and leave_i = [label_i != label_(i+1)]:
//   b_i' = (b_i + l_i) y_blank          l_i' = (l_i + b_(i-1) + leave_(i-1) l_(i-1)) y_i
// Backward probabilities are the same recursion over the reversed target from the last frame: half of the warps run it
// that way while the other half runs it from the first frame. Where the two meet their product gives the loss. Then
// each goes on over the frames that the other has been through: what enters a label's state there, before this frame's
// emission, times what the other left in it, after that emission, is the label's posterior.
//
// A lane owns K neighbouring pairs (b, l), so only what leaves its last pair, q, crosses lanes, by a shuffle. Each warp
// runs a block of frames behind its neighbour, which leaves the block's q of its last lane in shared memory.
#pragma once

#include "ctc_loss_block.cuh"
#include "ctc_loss_layout.cuh"

namespace fastctc {
namespace cuda {

// Packed emissions of one entry in as many frames as one memory access fetches.
template <class Scalar>
struct alignas(16) EmissionRun {
  static constexpr int kFrames = 16 / sizeof(Scalar);
  typename Number<Scalar>::Exponent frame[kFrames];
};

// How far ahead a lane fetches: runs of its emissions, and in the second half frames of the other direction's states.
// As far as registers allow.
template <class Scalar, int K>
struct Fetch {
  static constexpr int kRuns = sizeof(Scalar) == 4 && K <= 2 ? 2 : 1;
  static constexpr int kStates = sizeof(Scalar) == 4 ? (K <= 2 ? 4 : 2) : 1;
};

// The label states of a lane's pairs in one frame, packed, as memory holds them; then the bits of their posteriors.
template <class Scalar, int K>
struct alignas(K * sizeof(Scalar) < 16 ? K * sizeof(Scalar) : 16) LaneStates {
  typename Number<Scalar>::Exponent state[K];
};

// No more bits than this can a state rise above the largest exponent of all that reach it within a block of frames: up
// to three are added in each, and the mantissa of what comes in from another warp has grown as long.
constexpr int kBlockGrowth = 21;

// What a warp hands to the next one: the q of its last lane before each frame of a block, for two blocks in turn.
// Position 0 of a direction, before its first warp, stays dead.
constexpr int kEdgesPerWarp = 2 * kBlockFrames;
constexpr int kEdges = 2 * (kMostWarps + 1) * kEdgesPerWarp;

enum class Sweep { loss_only, first_half, second_half };

// The block's barrier, where the two directions wait for each other from different places in the code.
__device__ __forceinline__ void meet() { bar_sync(1, blockDim.x); }

// One direction's part of a block: `warps` warps, more than one only with kMany.
template <class Scalar, int K, bool kMany, bool kReverse, bool kGradient>
struct Chain {
  static constexpr bool kBackwards = kReverse, kWithGradient = kGradient;
  static constexpr Sweep kFirst = kGradient ? Sweep::first_half : Sweep::loss_only;
  using Exponent = typename Number<Scalar>::Exponent;
  static constexpr int kAhead = Fetch<Scalar, K>::kRuns, kStatesAhead = Fetch<Scalar, K>::kStates;
  static constexpr int kRunFrames = EmissionRun<Scalar>::kFrames, kRuns = kBlockFrames / kRunFrames;

  Scaled<Scalar> b[K], l[K];
  bool leave[K], valid[K];
  EmissionRun<Scalar> y[K][kAhead], y_blank[kAhead];  // fetched, of runs of frames in turn
  // of the block to fetch from next: each entry's frames lie together
  const EmissionRun<Scalar>* emission_at[K];
  const EmissionRun<Scalar>* blank_at;
  LaneStates<Scalar, K>* states_at;  // of the first frame of the block at hand; frames lie kGroupLanes apart
  Exponent* lowest_at;               // what they are relative to; blocks lie kGroupLanes apart
  int emission_stride;               // to the next block of this direction
  int blocks_to_fetch;
  bool has_states;  // this lane's pairs have a place in memory
  Scaled<Scalar>* edge_in;
  Scaled<Scalar>* edge_out;
  int warp;  // of this direction

  // The chain's pair j is label j and the blank after it, or, reversed and with `dead_pairs` before its start, label
  // S + 1 + dead_pairs - j and the blank before it. The dead pairs make each lane's labels lie as they do for the
  // other direction, in the opposite order.
  static __device__ __forceinline__ int dead_pairs(int labels) { return kReverse ? (K - (labels + 2) % K) % K : 0; }
  static __device__ __forceinline__ int label_of(int labels, int j) {
    return kReverse ? labels + 1 + dead_pairs(labels) - j : j;
  }

  __device__ __forceinline__ void start(const Call<Scalar>& call, const Row& row, int64_t first_row,
                                        Scaled<Scalar>* edges) {
    const int lane = threadIdx.x % 32, labels = row.labels, warps = blockDim.x / 64;
    warp = int(threadIdx.x / 32) - (kReverse ? warps : 0);
    const int first = (warp * 32 + lane) * K;
    edge_in = edges + (kReverse * (kMostWarps + 1) + warp) * kEdgesPerWarp;
    edge_out = edge_in + kEdgesPerWarp;
    if (kMany && warp == 0) {
      if (lane < kEdgesPerWarp) edge_in[lane] = dead<Scalar>();
      __syncwarp();
    }

    const int* const pair_class = call.scratch.pair_class + row.pairs_at;
    const int* const pair_entry = call.scratch.pair_entry + row.pairs_at;
    const int blocks = (row.frames + kBlockFrames - 1) / kBlockFrames, begin = kReverse ? blocks - 1 : 0;
    const auto* const emissions = reinterpret_cast<const EmissionRun<Scalar>*>(emissions_of(call, row, first_row)) +
                                  int64_t(begin) * row.entries * kRuns;
    emission_stride = row.entries * kRuns * (kReverse ? -1 : 1);
    blocks_to_fetch = blocks;
    blank_at = emissions;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int label = label_of(labels, first + k), next = kReverse ? label - 1 : label + 1;
      const bool next_valid = next >= 1 && next <= labels;
      valid[k] = label >= 1 && label <= labels;
      emission_at[k] = emissions + (valid[k] ? pair_entry[label] : 0) * kRuns;
      leave[k] = valid[k] && next_valid && pair_class[label] != pair_class[next];
      l[k] = dead<Scalar>();
      b[k] = first + k == dead_pairs(labels) ? one<Scalar>() : dead<Scalar>();
    }
    has_states = false;
    states_at = nullptr;
    lowest_at = nullptr;
    if (kGradient) {
      // the labels of the lane's pairs, from the lowest on: a multiple of K
      const int lowest = label_of(labels, kReverse ? first + K - 1 : first);
      has_states = lowest >= 0 && lowest <= labels + 1;
      const int owner = has_states ? lowest / K : 0;  // the lane that has these pairs in the other direction
      const int64_t first_block = owner / kGroupLanes * (call.plan.frames / kBlockFrames) + begin;
      states_at = reinterpret_cast<LaneStates<Scalar, K>*>(states_of(call, row, first_row)) +
                  first_block * kBlockFrames * kGroupLanes + owner % kGroupLanes;
      lowest_at =
          call.scratch.lowest +
          (row.groups_at - call.saved.rows[first_row].groups_at) * (call.plan.frames / kBlockFrames) * kGroupLanes +
          first_block * kGroupLanes + owner % kGroupLanes;
    }
    if (active(labels)) {
#pragma unroll
      for (int run = 0; run < kAhead; ++run) fetch(run);
    }
  }

  // Whether any of the warp's pairs can matter.
  __device__ __forceinline__ bool active(int labels) const { return warp * 32 * K < labels + K; }

  // Where this direction's f-th frame of a block is in it.
  static __device__ __forceinline__ constexpr int place(int f) { return kReverse ? kBlockFrames - 1 - f : f; }

  // The emissions of this direction's given run of frames in the block that is fetched from.
  __device__ __forceinline__ void fetch(int run) {
    const int at = kReverse ? kRuns - 1 - run : run;
#pragma unroll
    for (int k = 0; k < K; ++k) y[k][run % kAhead] = emission_at[k][at];
    y_blank[run % kAhead] = blank_at[at];
  }
  __device__ __forceinline__ void fetch_from_next_block() {
#pragma unroll
    for (int k = 0; k < K; ++k) emission_at[k] += emission_stride;
    blank_at += emission_stride;
    --blocks_to_fetch;
  }

  // The emissions of this direction's f-th frame of a block, with exponents that are kBias too large. Nearly all are in
  // the type's normal range.
  __device__ __forceinline__ void emissions_of_frame(int f, Scaled<Scalar> (&label)[K], Scaled<Scalar>* blank) const {
    const int run = f / kRunFrames % kAhead, at = place(f) % kRunFrames;
    Exponent signs = y_blank[run].frame[at];
#pragma unroll
    for (int k = 0; k < K; ++k) signs |= y[k][run].frame[at];
    if (signs >= 0) {
#pragma unroll
      for (int k = 0; k < K; ++k) label[k] = unpack_near_emission<Scalar>(y[k][run].frame[at]);
      *blank = unpack_near_emission<Scalar>(y_blank[run].frame[at]);
    } else {
#pragma unroll
      for (int k = 0; k < K; ++k) label[k] = unpack_emission_biased<Scalar>(y[k][run].frame[at]);
      *blank = unpack_emission_biased<Scalar>(y_blank[run].frame[at]);
    }
  }

  // What this lane's states of the block at hand are packed relative to: in a block of frames a pair is reached from
  // those up to kBlockFrames before it, which are in the lanes to the left or come in from the warp before.
  __device__ __forceinline__ Exponent lowest_of_block(int turn) const {
    Exponent largest = at_least(b[0].e, l[0].e);
#pragma unroll
    for (int k = 1; k < K; ++k) largest = at_least(largest, at_least(b[k].e, l[k].e));
    constexpr int lanes = kBlockFrames / K;
#pragma unroll
    for (int reach = 1; reach < lanes; reach *= 2)
      largest = at_least(largest, __shfl_up_sync(kAllLanes, largest, reach));
    largest = at_least(largest, __shfl_up_sync(kAllLanes, largest, 1));
    if (kMany) {
      const int lane = threadIdx.x % 32;
      const Exponent entering =
          reduce_lanes<kBlockFrames>(edge_in[turn * kBlockFrames + lane % kBlockFrames].e, Largest{});
      if (lane < lanes) largest = at_least(largest, entering);
    }
    return largest + kBlockGrowth + 1 - kNearRange<Scalar>;
  }

  __device__ __forceinline__ void store_states(int f, Exponent lowest) {
    Scaled<Scalar> label[K];
    Exponent packed[K];
    bool near = true;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      // whatever is no label, and so of no interest, need not be dead
      label[k] = {l[k].m, valid[k] ? l[k].e : lowest};
      near = near && label[k].e >= lowest;
    }
    if (near) {
#pragma unroll
      for (int k = 0; k < K; ++k) packed[k] = pack_near_state(label[k], lowest);
    } else {
#pragma unroll
      for (int k = 0; k < K; ++k) packed[k] = pack_state(label[k], lowest);
    }
    LaneStates<Scalar, K> states;
#pragma unroll
    for (int k = 0; k < K; ++k) states.state[kReverse ? K - 1 - k : k] = packed[k];
    if (has_states) states_at[place(f) * kGroupLanes] = states;
  }

  // `before` is what enters this lane's labels, `other` what the other direction left in them.
  __device__ __forceinline__ void store_posteriors(int f, const Scaled<Scalar> (&before)[K],
                                                   const LaneStates<Scalar, K>& other, Exponent lowest) {
    LaneStates<Scalar, K> posteriors;
    Exponent signs = other.state[0];
#pragma unroll
    for (int k = 1; k < K; ++k) signs |= other.state[k];
    Scaled<Scalar> after[K];
    if (signs >= 0) {
#pragma unroll
      for (int k = 0; k < K; ++k) after[k] = unpack_near_state<Scalar>(other.state[k], lowest);
    } else {
#pragma unroll
      for (int k = 0; k < K; ++k) after[k] = unpack_state<Scalar>(other.state[k], lowest);
    }
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int at = kReverse ? K - 1 - k : k;
      posteriors.state[at] = Number<Scalar>::bits(plain_product(before[k], after[at]));
    }
    if (has_states) states_at[place(f) * kGroupLanes] = posteriors;
  }

  // This direction's f-th frame of a block, over which the other direction left the states `other`.
  template <Sweep kSweep>
  __device__ __forceinline__ void step(int f, const LaneStates<Scalar, K>& other, Exponent lowest, int turn) {
    Scaled<Scalar> stay[K], q[K], before[K];
#pragma unroll
    for (int k = 0; k < K; ++k) {
      stay[k] = add(b[k], l[k]);
      q[k] = leave[k] ? stay[k] : b[k];
    }
    Scaled<Scalar> entering = {__shfl_up_sync(kAllLanes, q[K - 1].m, 1), __shfl_up_sync(kAllLanes, q[K - 1].e, 1)};
    const int lane = threadIdx.x % 32;
    if (kMany) {
      if (lane == 0) entering = edge_in[turn * kBlockFrames + f];
      if (lane == 31) edge_out[turn * kBlockFrames + f] = q[K - 1];
    } else if (lane == 0) {
      entering = dead<Scalar>();
    }
    Scaled<Scalar> y_label[K], y_b;
    emissions_of_frame(f, y_label, &y_b);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      before[k] = add(l[k], k == 0 ? entering : q[k > 0 ? k - 1 : 0]);
      b[k] = {stay[k].m * y_b.m, stay[k].e + y_b.e - Number<Scalar>::kBias};
      l[k] = {before[k].m * y_label[k].m, before[k].e + y_label[k].e - Number<Scalar>::kBias};
    }
    if (kSweep == Sweep::first_half) store_states(f, lowest);
    if (kSweep == Sweep::second_half) store_posteriors(f, before, other, lowest);
  }

  // Makes what follows relative to the probability of all paths, so that products of both directions are posteriors.
  __device__ __forceinline__ void divide_by(Scaled<Scalar> total) {
    const Scaled<Scalar> factor = inverse(total);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      b[k] = {b[k].m * factor.m, b[k].e + factor.e};
      l[k] = {l[k].m * factor.m, l[k].e + factor.e};
    }
  }

  // The next `blocks` blocks of this direction, in as many steps as the thread block needs for both.
  template <Sweep kSweep>
  __device__ __forceinline__ void sweep(int blocks, int steps, bool active) {
    constexpr bool kReads = kSweep == Sweep::second_half;
    constexpr int kNextBlock = kBlockFrames * kGroupLanes * (kReverse ? -1 : 1);
    LaneStates<Scalar, K> others[kStatesAhead];
    Exponent lowest = 0, next_lowest = 0;
    if (kReads && has_states && active && blocks > 0) next_lowest = *lowest_at;
#pragma unroll
    for (int f = 0; kReads && f < kStatesAhead; ++f) {
#pragma unroll
      for (int k = 0; k < K; ++k) others[f].state[k] = 0;
      if (has_states && active && blocks > 0) others[f] = states_at[place(f) * kGroupLanes];
    }
    for (int step_index = 0; step_index < steps; ++step_index) {
      const int block = step_index - (kMany ? warp : 0);
      if (active && block >= 0 && block < blocks) {
        const bool more_states = has_states && block + 1 < blocks;
        if (kReads) {
          lowest = next_lowest;
          if (more_states) next_lowest = lowest_at[kReverse ? -kGroupLanes : kGroupLanes];
        } else if (kGradient) {
          lowest = lowest_of_block(block % 2);
          if (has_states) *lowest_at = lowest;
        }
#pragma unroll
        for (int f = 0; f < kBlockFrames; ++f) {
          step<kSweep>(f, others[f % kStatesAhead], lowest, block % 2);
          const int ahead = f + kStatesAhead;
          if (kReads && ahead < kBlockFrames) {
            if (has_states) others[f % kStatesAhead] = states_at[place(ahead) * kGroupLanes];
          } else if (kReads) {
            if (more_states)
              others[f % kStatesAhead] = states_at[place(ahead - kBlockFrames) * kGroupLanes + kNextBlock];
          }
          if (f % kRunFrames != kRunFrames - 1) continue;
          const int run = f / kRunFrames + kAhead;
          if (run == kRuns) fetch_from_next_block();
          if (run < kRuns || blocks_to_fetch > 0) fetch(run % kRuns);
        }
        if (kGradient) states_at += kNextBlock;
        if (kGradient) lowest_at += kReverse ? -kGroupLanes : kGroupLanes;
#pragma unroll
        for (int k = 0; k < K; ++k) {
          b[k] = normalised(b[k]);
          l[k] = normalised(l[k]);
        }
      }
      if (kMany) meet();
    }
  }

  // Leaves the states for the meeting, blanks and then labels, each in the target's order.
  __device__ __forceinline__ void leave_states(int labels, Scaled<Scalar>* blanks, Scaled<Scalar>* label_states) const {
    const int first = (warp * 32 + int(threadIdx.x % 32)) * K;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int label = label_of(labels, first + k), blank = kReverse ? label - 1 : label;
      if (label >= 0 && label <= labels) label_states[label] = l[k];
      if (blank >= 0 && blank <= labels) blanks[blank] = b[k];
    }
  }
};

// What both directions left at the middle.
template <class Scalar>
struct Meeting {
  Scaled<Scalar>*blanks, *labels, *blanks_reverse, *labels_reverse;

  __device__ Meeting(char* memory, int label_count) {
    blanks = reinterpret_cast<Scaled<Scalar>*>(memory);
    labels = blanks + label_count + 1;
    blanks_reverse = labels + label_count + 1;
    labels_reverse = blanks_reverse + label_count + 1;
  }

  // The probability of all paths, relative to the frames' bases, for every thread of the block.
  __device__ Scaled<Scalar> total(const int* pair_class, int label_count, Scaled<Scalar>* shared) const {
    Scaled<Scalar> sum = dead<Scalar>();
    for (int i = threadIdx.x; i <= label_count; i += blockDim.x) {
      const Scaled<Scalar> stay = add(blanks[i], labels[i]);
      sum = add(sum, multiply(stay, blanks_reverse[i]));
      if (i == 0) continue;
      const bool leaves = i > 1 && pair_class[i - 1] != pair_class[i];
      Scaled<Scalar> before = add(labels[i], blanks[i - 1]);
      if (leaves) before = add(before, labels[i - 1]);
      sum = add(sum, multiply(before, labels_reverse[i]));
    }
    return sum_block(sum, shared);
  }

  static __device__ Scaled<Scalar> sum_block(Scaled<Scalar> sum, Scaled<Scalar>* shared) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      const Scaled<Scalar> other = {__shfl_xor_sync(kAllLanes, sum.m, step), __shfl_xor_sync(kAllLanes, sum.e, step)};
      sum = add(sum, other);
    }
    sum = normalised(sum);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = sum;
    meet();
    sum = shared[0];
    for (unsigned warp = 1; warp < blockDim.x / 32; ++warp) sum = add(sum, shared[warp]);
    return normalised(sum);
  }
};

// What the emissions leave out of a row's loss, for every thread.
template <class Scalar>
__device__ double sum_normaliser(const Call<Scalar>& call, const Row& row, int64_t r, double* shared) {
  double sum = 0;
  const Scalar* const normaliser = call.scratch.normaliser + r * call.p.shape.T;
  for (int t = threadIdx.x; t < row.frames; t += blockDim.x) sum += double(normaliser[t]);
  return reduce_block(sum, shared, Sum{});
}

// Writes down what became of row n. Returns whether there is a gradient to prepare.
template <class Scalar>
__device__ bool settle(const Call<Scalar>& call, int64_t n, Scaled<Scalar> total, double normaliser) {
  const bool possible = total.e >= Number<Scalar>::kDeadBelow;
  if (threadIdx.x == 0 && possible) {
    call.scratch.losses[n] = normaliser - (log(double(total.m)) + double(total.e) * 0.69314718055994530942);
    call.saved.outcomes[n] = Outcome::possible;
  }
  return possible;
}

// Whether row n goes through the lattice at all.
template <class Scalar>
__device__ bool enters_lattice(const Call<Scalar>& call, const Row& row, int64_t n) {
  if (!row.feasible) return false;
  if (call.scratch.bad_scores[n] == 0) return true;
  if (threadIdx.x == 0) {
    call.scratch.losses[n] = not_a_number(double());
    call.saved.outcomes[n] = Outcome::not_a_number;
  }
  return false;
}

// What one direction's warps do. Returns the probability of all paths.
template <class Chain, class Scalar>
__device__ Scaled<Scalar> run_direction(const Call<Scalar>& call, const Row& row, int64_t first_row, int before,
                                        int after, int steps, Scaled<Scalar>* edges, const Meeting<Scalar>& meeting,
                                        Scaled<Scalar>* partial) {
  Chain chain;
  chain.start(call, row, first_row, edges);
  const bool active = chain.active(row.labels);
  chain.template sweep<Chain::kFirst>(before, steps, active);
  chain.leave_states(row.labels, Chain::kBackwards ? meeting.blanks_reverse : meeting.blanks,
                     Chain::kBackwards ? meeting.labels_reverse : meeting.labels);
  meet();
  const Scaled<Scalar> total = meeting.total(call.scratch.pair_class + row.pairs_at, row.labels, partial);
  if (Chain::kWithGradient && total.e >= Number<Scalar>::kDeadBelow) {
    chain.divide_by(total);
    chain.template sweep<Sweep::second_half>(after, steps, active);
  }
  return total;
}

// Two warps, or with kMany up to 2 * kMostWarps: half of them for each direction. Block r has row first_row + r.
template <class Scalar, int K, bool kMany, bool kGradient>
__global__ void __launch_bounds__(kMany ? 64 * kMostWarps : 64, 1)
    lattice_kernel(Call<Scalar> call, int64_t first_row) {
  FASTCTC_DYNAMIC_SHARED(memory);
  FASTCTC_SHARED(Scaled<Scalar>, edges, kEdges);
  FASTCTC_SHARED(Scaled<Scalar>, partial, 2 * kMostWarps);
  FASTCTC_SHARED(double, partial_sums, 2 * kMostWarps);
  const int64_t r = blockIdx.x, n = first_row + r;
  const Row row = call.saved.rows[n];
  if (row.labels > call.plan.longest || !enters_lattice(call, row, n)) return;
  const int blocks = (row.frames + kBlockFrames - 1) / kBlockFrames, middle = blocks / 2, rest = blocks - middle;
  const int warps_needed = (row.labels + K + 32 * K - 1) / (32 * K);
  const int steps = rest + warps_needed - 1;
  const Meeting<Scalar> meeting(memory, row.labels);
  Scaled<Scalar> total;
  if (threadIdx.x < blockDim.x / 2)
    total = run_direction<Chain<Scalar, K, kMany, false, kGradient>>(call, row, first_row, middle, rest, steps, edges,
                                                                     meeting, partial);
  else
    total = run_direction<Chain<Scalar, K, kMany, true, kGradient>>(call, row, first_row, rest, middle, steps, edges,
                                                                    meeting, partial);
  settle(call, n, total, sum_normaliser(call, row, r, partial_sums));
}

}  // namespace cuda
}  // namespace fastctc
