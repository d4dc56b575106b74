// What the CTC loss's kernels are told, and where everything lies in memory.
//
// A target of S labels has S + 1 pairs of states: the label l_i and the blank b_i after it; l_0 is dead. The blank, and
// then the different classes of the labels in ascending order, are the row's entries: emissions and posterior sums are
// kept per entry, not per label, because a target repeats its classes.
//
// Frames go by blocks of kBlockFrames. A row's frames are filled up to whole blocks with ones in which only the blank
// can be emitted, with probability 1: they change nothing.
#pragma once

#include "ctc_loss_numbers.cuh"
#include "fastctc/ctc_loss_cuda.h"

namespace fastctc {
namespace cuda {

// One row of the batch, as the kernel that checks it (prepare) finds it.
struct Row {
  int64_t pairs_at;    // of its S + 1 pairs among those of all rows
  int64_t entries_at;  // likewise of its entries
  int frames;          // all T where its own length is at fault
  int labels;
  int entries;
  int blank_entry;  // of the label that is the blank, if there is one, else 0
  int feasible;     // whether there are frames enough, and no fault
};

enum class Outcome : int {
  impossible = 0,    // no path has a probability, or the row has a fault
  possible = 1,      // the gradient can be made from the posterior sums
  not_a_number = 2,  // a score that a path reads is NaN or +inf, or a frame of logits has no maximum
};

// What the backward pass needs of the forward pass. Scalar is what the scores are computed in.
template <class Scalar>
struct Saved {
  Row* rows;               // (N)
  Outcome* outcomes;       // (N)
  int* entry_class;        // (pairs of all rows), those of row n from pairs_at on
  Scalar* row_base;        // (N, T) logits: the frame's maximum
  Scalar* row_scale;       // (N, T) logits: 1 / sum of exp(score - base)
  Scalar* posterior_sums;  // row n: (T, entries) from T * entries_at on; of the labels of that class, 0 for entry 0
};

// How the lattice kernels share work: pairs of states per lane and warps per direction, or the general kernel.
struct LatticePlan {
  bool general;
  int pairs_per_lane;
  int warps;
  int64_t frames;   // T in whole blocks
  int64_t rows;     // that have scratch memory at the same time
  int64_t entries;  // room per frame for emissions
  int64_t width;    // room per frame for label states
  int64_t segment;  // general: frames between two checkpoints
  int64_t segments;
  int64_t shared_bytes;   // dynamic shared memory of the lattice kernel
  bool states_in_shared;  // general: where the current frame's states are
};

template <class Scalar>
struct Scratch {
  double* losses;       // (N)
  int* faults;          // (N) CtcLossFault
  int* bad_scores;      // (N) whether a score that a path reads is NaN or +inf
  int* pair_class;      // (pairs of all rows): -1, then the labels
  int* pair_entry;      // (pairs of all rows): which entry has that class
  int* pairs_by_class;  // (pairs of all rows): stable order of the row's pairs
  int* segments;        // (pairs of all rows + N), row n's from pairs_at + n on: where in that order each entry's begin
  // of the rows whose turn it is, of which the first is row 0 here:
  Scalar* normaliser;           // (rows, T) what the emissions, relative to a base, leave out of the loss
  Scaled<Scalar>* emissions;    // (rows, blocks, entries of that row, kBlockFrames)
  Scaled<Scalar>* states;       // (rows, groups, frames, kGroupLanes, pairs per lane), general: (rows, segment, width)
  Scaled<Scalar>* checkpoints;  // general: (rows, segments, 2, width) blanks and labels before each segment
  Scaled<Scalar>* current;      // general, where not in shared memory: (rows, 2, 2, width)
};

// What every kernel of a call may need, passed by value.
template <class Scalar>
struct Call {
  CtcLossCudaParams p;
  LatticePlan plan;
  Saved<Scalar> saved;
  Scratch<Scalar> scratch;
};

constexpr int64_t kAlignment = 256;
constexpr int kBlockFrames = 8;         // frames between two renormalisations, and two barriers, in the lattice kernel
constexpr int kGroupLanes = 8;          // neighbouring lanes whose states lie together in memory
constexpr int kMostWarps = 6;           // per direction of the lattice kernel
constexpr int64_t kMostShared = 48000;  // bytes of shared memory that every device gives a block unasked

// Where the emission of an entry is in frame t of a row of so many entries.
__device__ __forceinline__ int64_t emission_place(int entries, int t, int entry) {
  return (int64_t(t / kBlockFrames) * entries + entry) * kBlockFrames + t % kBlockFrames;
}

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Hands out aligned pieces of a buffer; with a null base it only measures.
struct Carver {
  char* base;
  int64_t used = 0;

  template <class T>
  T* take(int64_t n) {
    char* piece = base ? base + used : nullptr;
    used += round_up(n * int64_t(sizeof(T)), kAlignment);
    return reinterpret_cast<T*>(piece);
  }
};

// Scratch bytes of one row's turn.
template <class Scalar>
int64_t row_bytes(const CtcLossCudaShape& shape, const LatticePlan& plan) {
  const int64_t state = int64_t(sizeof(Scaled<Scalar>));
  int64_t bytes = shape.T * int64_t(sizeof(Scalar)) + plan.frames * plan.entries * state;
  if (!plan.general) return bytes + (shape.want_grad ? plan.frames * plan.width * state : 0);
  if (shape.want_grad) bytes += (plan.segment + 2 * plan.segments) * plan.width * state;
  if (!plan.states_in_shared) bytes += 4 * plan.width * state;
  return bytes;
}

template <class Scalar>
LatticePlan make_plan(const CtcLossCudaShape& shape, int64_t max_workspace_bytes) {
  LatticePlan plan{};
  const int64_t state = int64_t(sizeof(Scaled<Scalar>));
  plan.frames = round_up(shape.T, kBlockFrames);
  plan.entries = smaller(shape.max_labels, shape.C) + 1;
  // The direction from the end begins with up to pairs_per_lane - 1 dead pairs.
  plan.pairs_per_lane = 2;
  if (sizeof(Scalar) == 4 && shape.max_labels + 2 > 64 * kMostWarps) plan.pairs_per_lane = 4;
  plan.warps =
      int(round_up(shape.max_labels + plan.pairs_per_lane, 32 * plan.pairs_per_lane) / (32 * plan.pairs_per_lane));
  plan.width = round_up(shape.max_labels + plan.pairs_per_lane + 1, kGroupLanes * plan.pairs_per_lane);
  plan.shared_bytes = 4 * (shape.max_labels + 1) * state;
  plan.general = plan.warps > kMostWarps || row_bytes<Scalar>(shape, plan) > max_workspace_bytes;
  if (plan.general) {
    plan.width = round_up(shape.max_labels + 1, 4);
    plan.segment = 1;
    while (plan.segment * plan.segment < shape.T) ++plan.segment;
    plan.segments = (shape.T + plan.segment - 1) / plan.segment;
    plan.shared_bytes = 4 * plan.width * state;
    plan.states_in_shared = plan.shared_bytes <= kMostShared;
    if (!plan.states_in_shared) plan.shared_bytes = 0;
  }
  plan.rows = larger(1, smaller(shape.N, max_workspace_bytes / larger(1, row_bytes<Scalar>(shape, plan))));
  // so that the kernels over rows and frames can count in 32 bits
  plan.rows = larger(1, smaller(plan.rows, ((int64_t(1) << 31) - 1) / plan.frames));
  return plan;
}

// Carves both buffers, either of which may be null, and returns how large they have to be.
template <class Scalar>
CtcLossCudaMemory lay_out(const CtcLossCudaShape& shape, const LatticePlan& plan, void* saved_memory,
                          void* scratch_memory, Saved<Scalar>* saved, Scratch<Scalar>* scratch) {
  Carver keep{static_cast<char*>(saved_memory)}, work{static_cast<char*>(scratch_memory)};
  const int64_t pairs = shape.total_labels + shape.N;
  Carver& lasting = shape.want_grad ? keep : work;
  saved->rows = lasting.take<Row>(shape.N);
  saved->outcomes = lasting.take<Outcome>(shape.N);
  saved->entry_class = lasting.take<int>(pairs);
  if (shape.want_grad) {
    saved->row_base = keep.take<Scalar>(shape.N * shape.T);
    saved->row_scale = keep.take<Scalar>(shape.N * shape.T);
    saved->posterior_sums = keep.take<Scalar>(shape.T * smaller(pairs, shape.N * plan.entries));
  }
  scratch->losses = work.take<double>(shape.N);
  scratch->faults = work.take<int>(shape.N);
  scratch->bad_scores = work.take<int>(shape.N);
  scratch->pair_class = work.take<int>(pairs);
  scratch->pair_entry = work.take<int>(pairs);
  scratch->pairs_by_class = work.take<int>(pairs);
  scratch->segments = work.take<int>(pairs + shape.N);
  scratch->normaliser = work.take<Scalar>(plan.rows * shape.T);
  scratch->emissions = work.take<Scaled<Scalar>>(plan.rows * plan.frames * plan.entries);
  if (!plan.general) {
    if (shape.want_grad) scratch->states = work.take<Scaled<Scalar>>(plan.rows * plan.frames * plan.width);
  } else {
    if (shape.want_grad) {
      scratch->states = work.take<Scaled<Scalar>>(plan.rows * plan.segment * plan.width);
      scratch->checkpoints = work.take<Scaled<Scalar>>(plan.rows * plan.segments * 2 * plan.width);
    }
    if (!plan.states_in_shared) scratch->current = work.take<Scaled<Scalar>>(plan.rows * 4 * plan.width);
  }
  return {keep.used, work.used};
}

}  // namespace cuda
}  // namespace fastctc
