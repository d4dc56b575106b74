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
  int64_t entries_at;  // likewise of its entries,
  int64_t groups_at;   // of its groups of states, if the lattice kernel takes it,
  int64_t long_at;     // and of itself among the rows that are too long for that
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
  Row* rows;          // (N)
  Outcome* outcomes;  // (N)
  int* entry_class;   // (pairs of all rows), those of row n from pairs_at on
  Scalar* row_base;   // (N, T) logits: the frame's maximum
  Scalar* row_scale;  // (N, T) logits: 1 / sum of exp(score - base)
  // row n: (frames, entries) from frames * entries_at on; of the labels of that class, 0 for entry 0. Its emissions
  // have been there before.
  Scalar* posterior_sums;
};

// Which of the lattice kernels takes a row, and how they share its work.
struct LatticePlan {
  int64_t frames;   // T in whole blocks
  int64_t rows;     // that have scratch memory at the same time
  int64_t entries;  // no row has more
  // the lattice kernel
  int64_t longest;  // target that it takes; -1: none
  int pairs_per_lane;
  int warps;             // per direction
  int64_t groups;        // of states, for the rows of a turn
  int64_t shared_bytes;  // dynamic
  // the general kernel
  int64_t long_rows;  // of a turn, that have targets for it
  int64_t width;      // room per frame for label states
  int64_t segment;    // frames between two checkpoints, whole blocks
  int64_t segments;
  int64_t general_shared_bytes;
  bool states_in_shared;  // where the current frame's states are
};

template <class Scalar>
struct Scratch {
  using Packed = typename Number<Scalar>::Exponent;
  double* losses;       // (N)
  int* faults;          // (N) CtcLossFault
  int* bad_scores;      // (N) whether a score that a path reads is NaN or +inf
  int* pair_class;      // (pairs of all rows): -1, then the labels
  int* pair_entry;      // (pairs of all rows): which entry has that class
  int* pairs_by_class;  // (pairs of all rows): stable order of the row's pairs
  int* segments;        // (pairs of all rows + N), row n's from pairs_at + n on: where in that order each entry's begin
  // of the rows whose turn it is, of which the first is row 0 here:
  Scalar* normaliser;           // (rows, T) what the emissions, relative to a base, leave out of the loss
  Packed* emissions;            // without gradient: (blocks, entries, kBlockFrames) of each row
  Packed* states;               // (groups, frames, kGroupLanes, pairs per lane)
  Packed* lowest;               // (groups, blocks, kGroupLanes) what they are relative to
  Scaled<Scalar>* kept;         // general: (long rows, segment, width) label states
  Scaled<Scalar>* checkpoints;  // general: (long rows, segments, 2, width) blanks and labels before each segment
  Scaled<Scalar>* current;      // general, where not in shared memory: (long rows, 2, 2, width)
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
constexpr int kGroupLanes = 4;          // neighbouring lanes whose states lie together in memory
constexpr int kMostWarps = 6;           // per direction of the lattice kernel
constexpr int64_t kMostShared = 48000;  // bytes of shared memory that every device gives a block unasked

// Where the emission of an entry is in frame t of a row of so many entries.
__device__ __forceinline__ int64_t emission_place(int entries, int t, int entry) {
  return (int64_t(t / kBlockFrames) * entries + entry) * kBlockFrames + t % kBlockFrames;
}

// The packed emissions of a row of the turn that begins with row first_row. With a gradient they lie where the sums of
// posteriors will, which have as many bits.
template <class Scalar>
__device__ __forceinline__ typename Number<Scalar>::Exponent* emissions_of(const Call<Scalar>& call, const Row& row,
                                                                           int64_t first_row) {
  if (!call.p.shape.want_grad)
    return call.scratch.emissions + call.plan.frames * (row.entries_at - call.saved.rows[first_row].entries_at);
  return reinterpret_cast<typename Number<Scalar>::Exponent*>(call.saved.posterior_sums +
                                                              call.plan.frames * row.entries_at);
}

// The packed states of a row of that turn, which become its posteriors.
template <class Scalar>
__device__ __forceinline__ typename Number<Scalar>::Exponent* states_of(const Call<Scalar>& call, const Row& row,
                                                                        int64_t first_row) {
  const int64_t groups = row.groups_at - call.saved.rows[first_row].groups_at;
  return call.scratch.states + groups * call.plan.frames * kGroupLanes * call.plan.pairs_per_lane;
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

// Lanes of a group times pairs per lane.
inline int64_t group_pairs(const LatticePlan& plan) { return int64_t(kGroupLanes) * plan.pairs_per_lane; }

// Groups of states of a target that the lattice kernel takes. The direction from the end begins with up to
// pairs_per_lane - 1 dead pairs.
__host__ __device__ __forceinline__ int64_t row_groups(const LatticePlan& plan, int64_t labels) {
  const int64_t pairs = int64_t(kGroupLanes) * plan.pairs_per_lane;
  return (labels + plan.pairs_per_lane + pairs) / pairs;
}

template <class Scalar>
void choose_lattice(const CtcLossCudaShape& shape, LatticePlan* plan) {
  constexpr int most_pairs = sizeof(Scalar) == 4 ? 4 : 2;
  plan->longest = smaller(shape.max_labels, 32 * kMostWarps * most_pairs - most_pairs);
  // four where two would keep more than one warp of this row busy in each quarter of a multiprocessor
  plan->pairs_per_lane = most_pairs == 4 && plan->longest + 2 > 4 * 32 ? 4 : 2;
  const int64_t warp_pairs = 32 * plan->pairs_per_lane;
  plan->warps = int((plan->longest + plan->pairs_per_lane + warp_pairs - 1) / warp_pairs);
  plan->shared_bytes = 4 * (plan->longest + 1) * int64_t(sizeof(Scaled<Scalar>));
}

template <class Scalar>
void choose_segments(const CtcLossCudaShape& shape, LatticePlan* plan) {
  plan->width = round_up(shape.max_labels + 1, 4);
  // the label states of one segment, and blanks and labels before each: least where a segment has sqrt(2 T) frames
  int64_t segment = 1;
  while (segment * segment < 2 * shape.T) ++segment;
  plan->segment = round_up(segment, kBlockFrames);
  plan->segments = (shape.T + plan->segment - 1) / plan->segment;
  plan->general_shared_bytes = 4 * plan->width * int64_t(sizeof(Scaled<Scalar>));
  plan->states_in_shared = plan->general_shared_bytes <= kMostShared;
  if (!plan->states_in_shared) plan->general_shared_bytes = 0;
}

// Carves the memory of one turn, with a plan whose number of rows is chosen.
template <class Scalar>
void lay_out_turn(const CtcLossCudaShape& shape, const LatticePlan& plan, Carver* work, Scratch<Scalar>* scratch) {
  using Packed = typename Number<Scalar>::Exponent;
  scratch->normaliser = work->take<Scalar>(plan.rows * shape.T);
  if (!shape.want_grad)
    scratch->emissions =
        work->take<Packed>(plan.frames * smaller(plan.rows * plan.entries, shape.total_labels + plan.rows));
  else if (plan.groups > 0) {
    scratch->states = work->take<Packed>(plan.groups * plan.frames * group_pairs(plan));
    scratch->lowest = work->take<Packed>(plan.groups * plan.frames / kBlockFrames * kGroupLanes);
  }
  if (plan.long_rows == 0) return;
  if (shape.want_grad) {
    scratch->kept = work->take<Scaled<Scalar>>(plan.long_rows * plan.segment * plan.width);
    scratch->checkpoints = work->take<Scaled<Scalar>>(plan.long_rows * plan.segments * 2 * plan.width);
  }
  if (!plan.states_in_shared) scratch->current = work->take<Scaled<Scalar>>(plan.long_rows * 4 * plan.width);
}

// So many rows take their turn at the same time. Returns the bytes of scratch memory that they need.
template <class Scalar>
int64_t choose_rows(const CtcLossCudaShape& shape, int64_t rows, LatticePlan* plan) {
  plan->rows = rows;
  plan->groups = plan->long_rows = 0;
  if (plan->longest >= 0)
    plan->groups =
        smaller(rows * row_groups(*plan, plan->longest),
                (shape.total_labels + rows * (plan->pairs_per_lane + group_pairs(*plan))) / group_pairs(*plan));
  if (plan->longest < 0)
    plan->long_rows = rows;
  else if (plan->longest < shape.max_labels)
    plan->long_rows = smaller(rows, shape.total_labels / (plan->longest + 1));
  Carver work{nullptr};
  Scratch<Scalar> scratch{};
  lay_out_turn(shape, *plan, &work, &scratch);
  return work.used;
}

template <class Scalar>
LatticePlan make_plan(const CtcLossCudaShape& shape, int64_t max_workspace_bytes) {
  LatticePlan plan{};
  plan.frames = round_up(shape.T, kBlockFrames);
  plan.entries = smaller(shape.max_labels, shape.C) + 1;
  choose_lattice<Scalar>(shape, &plan);
  choose_segments<Scalar>(shape, &plan);
  LatticePlan one_row = plan;
  CtcLossCudaShape short_target = shape;
  short_target.max_labels = short_target.total_labels = plan.longest;
  if (choose_rows<Scalar>(short_target, 1, &one_row) > max_workspace_bytes) plan.longest = -1;
  // so that the kernels over rows and frames can count in 32 bits
  int64_t rows = larger(1, smaller(shape.N, ((int64_t(1) << 31) - 1) / plan.frames));
  if (choose_rows<Scalar>(shape, rows, &plan) > max_workspace_bytes) {
    rows = larger(1, smaller(rows, max_workspace_bytes / choose_rows<Scalar>(shape, 1, &plan)));
    choose_rows<Scalar>(shape, rows, &plan);
  }
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
    saved->posterior_sums = keep.take<Scalar>(plan.frames * smaller(pairs, shape.N * plan.entries));
  }
  scratch->losses = work.take<double>(shape.N);
  scratch->faults = work.take<int>(shape.N);
  scratch->bad_scores = work.take<int>(shape.N);
  scratch->pair_class = work.take<int>(pairs);
  scratch->pair_entry = work.take<int>(pairs);
  scratch->pairs_by_class = work.take<int>(pairs);
  scratch->segments = work.take<int>(pairs + shape.N);
  lay_out_turn(shape, plan, &work, scratch);
  return {keep.used, work.used};
}

}  // namespace cuda
}  // namespace fastctc
