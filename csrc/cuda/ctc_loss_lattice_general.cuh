// Forward and backward probabilities of rows that the lattice kernel does not take: targets of any length, in bounded
// memory. One block per row, a barrier per frame. Forward states are kept before each segment of about sqrt(T) frames;
// on the way back a segment's forward states are computed a second time.
#pragma once

#include "ctc_loss_lattice.cuh"
#include "ctc_loss_sums.cuh"

namespace fastctc {
namespace cuda {

constexpr int kGeneralThreads = 512;

// Blanks and labels of one frame, S + 1 each.
template <class Scalar>
struct FrameStates {
  Scaled<Scalar>*blanks, *labels;
};

template <class Scalar>
struct GeneralLattice {
  const Call<Scalar>& call;
  const Row& row;
  const int64_t slot;  // of the row, among those that this kernel takes
  const int* const pair_class;
  const int* const pair_entry;
  const typename Number<Scalar>::Exponent* const emissions;
  FrameStates<Scalar> states, next;

  __device__ GeneralLattice(const Call<Scalar>& call, const Row& row, int64_t first_row, char* shared)
      : call(call),
        row(row),
        slot(row.long_at - call.saved.rows[first_row].long_at),
        pair_class(call.scratch.pair_class + row.pairs_at),
        pair_entry(call.scratch.pair_entry + row.pairs_at),
        emissions(emissions_of(call, row, first_row)) {
    const int64_t width = call.plan.width;
    Scaled<Scalar>* const memory = call.plan.states_in_shared ? reinterpret_cast<Scaled<Scalar>*>(shared)
                                                              : call.scratch.current + slot * 4 * width;
    states = {memory, memory + width};
    next = {memory + 2 * width, memory + 3 * width};
  }

  __device__ void swap() {
    const FrameStates<Scalar> old = states;
    states = next;
    next = old;
    __syncthreads();
  }
  // All dead but one blank.
  __device__ void start(int blank, Scaled<Scalar> probability) {
    for (int i = threadIdx.x; i <= row.labels; i += blockDim.x) {
      states.blanks[i] = i == blank ? probability : dead<Scalar>();
      states.labels[i] = dead<Scalar>();
    }
    __syncthreads();
  }
  // Whether a path may go from label i to label i + 1 without a blank between them.
  __device__ bool leaves(int i) const { return i >= 1 && i < row.labels && pair_class[i] != pair_class[i + 1]; }

  __device__ Scaled<Scalar> emission_of(int t, int entry) const {
    return unpack_emission<Scalar>(emissions[emission_place(row.entries, t, entry)]);
  }

  // One frame forward; label states go to `kept` as well, unless that is null.
  __device__ void forward(int t, Scaled<Scalar>* kept) {
    const Scaled<Scalar> y_blank = emission_of(t, 0);
    for (int i = threadIdx.x; i <= row.labels; i += blockDim.x) {
      const Scaled<Scalar> blank = states.blanks[i], label = states.labels[i];
      next.blanks[i] = normalised(multiply(add(blank, label), y_blank));
      Scaled<Scalar> state = dead<Scalar>();
      if (i > 0) {
        state = add(label, states.blanks[i - 1]);
        if (leaves(i - 1)) state = add(state, states.labels[i - 1]);
        state = normalised(multiply(state, emission_of(t, pair_entry[i])));
      }
      next.labels[i] = state;
      if (kept) kept[i] = state;
    }
    swap();
  }

  // One frame backward; the label posteriors take the place of the forward states in `kept`.
  __device__ void backward(int t, Scaled<Scalar>* kept) {
    const Scaled<Scalar> y_blank = emission_of(t, 0);
    for (int i = threadIdx.x; i <= row.labels; i += blockDim.x) {
      const Scaled<Scalar> blank = states.blanks[i];
      const Scaled<Scalar> blank_before = i < row.labels ? add(blank, states.labels[i + 1]) : blank;
      next.blanks[i] = normalised(multiply(blank_before, y_blank));
      const Scaled<Scalar> before = add(states.labels[i], leaves(i) ? blank_before : blank);
      kept[i].m = i == 0 ? Scalar(0) : plain_product(before, kept[i]);
      next.labels[i] = i == 0 ? dead<Scalar>() : normalised(multiply(before, emission_of(t, pair_entry[i])));
    }
    swap();
  }

  __device__ FrameStates<Scalar> checkpoint(int64_t segment) const {
    const int64_t width = call.plan.width;
    Scaled<Scalar>* const at = call.scratch.checkpoints + (slot * call.plan.segments + segment) * 2 * width;
    return {at, at + width};
  }
  __device__ void copy(FrameStates<Scalar> from, FrameStates<Scalar> to) const {
    for (int i = threadIdx.x; i <= row.labels; i += blockDim.x) {
      to.blanks[i] = from.blanks[i];
      to.labels[i] = from.labels[i];
    }
    __syncthreads();
  }
};

// Posterior sums of all frames, segment by segment from the last one.
template <class Scalar>
__device__ void general_posteriors(GeneralLattice<Scalar>& lattice, int64_t n, Scaled<Scalar> total) {
  const Call<Scalar>& call = lattice.call;
  const Row& row = lattice.row;
  const int segment_frames = int(call.plan.segment);
  const int64_t width = call.plan.width;
  Scaled<Scalar>* const kept = call.scratch.kept + lattice.slot * call.plan.segment * width;
  const PosteriorPlaces places = {1, 2, 2 * kGroupLanes, int(2 * width)};
  // what the backward states are between two segments
  const FrameStates<Scalar> resting = lattice.checkpoint((row.frames - 1) / segment_frames);
  for (int segment = (row.frames - 1) / segment_frames; segment >= 0; --segment) {
    const int begin = segment * segment_frames, end = at_most(begin + segment_frames, row.frames);
    const bool last = end == row.frames;
    if (!last) lattice.copy(lattice.states, resting);
    if (!last) {
      lattice.copy(lattice.checkpoint(segment), lattice.states);
      for (int t = begin; t < end; ++t) lattice.forward(t, kept + (t - begin) * width);
      lattice.copy(resting, lattice.states);
    } else {
      // dividing by the total here makes every product with a forward state a posterior
      lattice.start(row.labels, inverse(total));
    }
    for (int t = end - 1; t >= begin; --t) lattice.backward(t, kept + (t - begin) * width);
    sum_posteriors(call, row, n, reinterpret_cast<const Scalar*>(kept), places, begin, end - begin,
                   int(threadIdx.x / 32), int(blockDim.x / 32));
    __syncthreads();
  }
}

template <class Scalar>
__global__ void __launch_bounds__(kGeneralThreads, 1) general_lattice_kernel(Call<Scalar> call, int64_t first_row) {
  FASTCTC_DYNAMIC_SHARED(memory);
  FASTCTC_SHARED(double, partial_sums, kGeneralThreads / 32);
  const int64_t r = blockIdx.x, n = first_row + r;
  const Row row = call.saved.rows[n];
  if (row.labels <= call.plan.longest || !enters_lattice(call, row, n)) return;
  GeneralLattice<Scalar> lattice(call, row, first_row, memory);
  const bool want_grad = call.p.shape.want_grad;
  const int segment_frames = int(call.plan.segment), last_segment = (row.frames - 1) / segment_frames;
  lattice.start(0, one<Scalar>());
  for (int t = 0; t < row.frames; ++t) {
    const int segment = t / segment_frames;
    Scaled<Scalar>* kept = nullptr;
    if (want_grad) {
      // the last segment's forward states stay, so it needs no checkpoint
      if (segment == last_segment)
        kept = call.scratch.kept + (lattice.slot * call.plan.segment + t % segment_frames) * call.plan.width;
      else if (t % segment_frames == 0)
        lattice.copy(lattice.states, lattice.checkpoint(segment));
    }
    lattice.forward(t, kept);
  }
  const Scaled<Scalar> total = normalised(add(lattice.states.blanks[row.labels], lattice.states.labels[row.labels]));
  __syncthreads();
  if (settle(call, n, total, sum_normaliser(call, row, r, partial_sums)) && want_grad)
    general_posteriors(lattice, n, total);
}

}  // namespace cuda
}  // namespace fastctc
