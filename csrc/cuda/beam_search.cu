// CTC prefix beam search: a kernel over all frames finds each one's best classes, then a block per utterance runs its
// beam through them, which stays in shared memory.
#include <climits>
#include <cmath>

#include "beam_search_beam.cuh"
#include "beam_search_frames.cuh"
#include "beam_search_times.cuh"
#include "device_scope.cuh"
#include "fastctc/forced_align_cuda.h"

namespace fastctc {
namespace cuda {

// The record of a frame into shared memory.
__device__ __forceinline__ void copy_record(char* shared, const char* record, int64_t bytes) {
  for (int i = int(threadIdx.x) * 16; i < bytes; i += int(blockDim.x) * 16) copy_async16(shared + i, record + i);
}

template <class X, bool fused, bool one_warp>
__global__ void __launch_bounds__(one_warp ? 32 : 32 * kMostTeamWarps, 1)
    beam_kernel(const __grid_constant__ BeamCall call) {
  using Search = Beam<X, fused, one_warp>;
  using Scalar = typename Search::Scalar;
  FASTCTC_DYNAMIC_SHARED(records);  // of two frames
  FASTCTC_SHARED(typename Search::Group::Shared, team_shared, 1);
  FASTCTC_SHARED(typename Search::Shared, shared, 1);
  const BeamSearchCudaParams& p = call.p;
  const int64_t n = blockIdx.x, length = p.lengths[n];
  const bool bad = length < 0 || length > p.shape.T;
  const int64_t frames = bad ? 0 : length;
  Search beam(call, team_shared[0], shared[0], n, frames);
  if (bad) beam.alive = false;
  const X* row = static_cast<const X*>(p.scores) + n * p.scores_stride_n;
  const char* record = record_of<Scalar>(call, n, 0);
  if (frames > 0) copy_record(records, record, call.record_bytes);
  copy_async_commit();
  X ahead{};
  int ahead_of = -1;  // class whose score in the coming frame that is
  for (int64_t t = 0; t < frames; ++t) {
    copy_async_wait<0>();
    Search::Group::sync();
    record += call.record_bytes;
    if (t + 1 < frames) copy_record(records + (t + 1) % 2 * call.record_bytes, record, call.record_bytes);
    copy_async_commit();
    const int last = beam.s.last[beam.slot];
    const X score = last == ahead_of ? ahead : row[last];
    row += p.scores_stride_t;
    if (t + 1 < frames) ahead = row[last];
    ahead_of = last;
    if (beam.take(records + t % 2 * call.record_bytes, to_scalar(score))) continue;
    beam.alive = false;
    break;
  }
  // where the beam has died, a copy is under way still
  copy_async_wait<0>();
  beam.finish(n);
}

namespace {

template <class X, int threads, int room>
cudaError_t launch_frames(const BeamCall& call) {
  constexpr int64_t groups = kFrameThreads / threads;
  const int64_t blocks = (call.p.shape.N * call.p.shape.T + groups - 1) / groups;
  if (blocks > INT_MAX) return cudaErrorInvalidValue;
  return launch(frames_kernel<X, threads, room>, dim3(unsigned(blocks)), dim3(kFrameThreads), 0,
                static_cast<cudaStream_t>(call.p.stream), call);
}

template <class X, bool fused, bool one_warp>
cudaError_t launch_beam(const BeamCall& call) {
  const int width = one_warp ? 32 : int(round_up(call.p.shape.beam_size, 32));
  return launch(beam_kernel<X, fused, one_warp>, dim3(unsigned(call.p.shape.N)), dim3(unsigned(width)),
                2 * size_t(call.record_bytes), static_cast<cudaStream_t>(call.p.stream), call);
}

template <class X>
cudaError_t launch_search(X*, const BeamCall& call) {
  const BeamSearchCudaShape& shape = call.p.shape;
  if (shape.N == 0) return cudaSuccess;
  if (shape.T > 0) {
    // a buffer takes what is wanted and what kAhead more classes for each thread add
    const cudaError_t error =
        call.classes <= 96 ? launch_frames<X, 32, 256>(call) : launch_frames<X, kFrameThreads, 1024>(call);
    if (error != cudaSuccess) return error;
  }
  if (shape.beam_size <= 32) return shape.fused ? launch_beam<X, true, true>(call) : launch_beam<X, false, true>(call);
  return shape.fused ? launch_beam<X, true, false>(call) : launch_beam<X, false, false>(call);
}

// How many results have their turn at once, and where their scratch memory lies.
struct TimesPlan {
  int64_t rows;
  ForcedAlignCudaShape align;
  void* align_scratch;
  int64_t* paths;
  int32_t* faults;
  void* path_scores;
  TimesCall call;
  int64_t bytes;
};

TimesPlan plan_times(const BeamAlignCudaParams& p, int64_t rows, int64_t segment) {
  const BeamSearchCudaShape& shape = p.search.shape;
  TimesPlan plan{};
  plan.rows = rows;
  plan.align.dtype = shape.dtype;
  plan.align.T = shape.T;
  plan.align.N = rows;
  plan.align.C = shape.C;
  plan.align.max_labels = p.max_tokens;
  plan.align.targets_per_utterance = smaller(rows, p.search.nbest);
  Carver carve{static_cast<char*>(p.scratch)};
  plan.align_scratch = carve.take<char>(forced_align_cuda_scratch_bytes(plan.align));
  plan.paths = carve.take<int64_t>(rows * shape.T);
  plan.faults = carve.take<int32_t>(rows);
  plan.path_scores = carve.take<char>(rows * shape.T * (shape.dtype == DType::float64 ? 8 : 4));
  plan.call.pairs = p.max_tokens + 1;
  plan.call.segment = int(segment);
  plan.call.in_shared = 4 * plan.call.pairs * int64_t(sizeof(State)) <= kMostShared - 1024;
  if (p.confidence) {
    const int64_t segments = (shape.T + segment - 1) / segment;
    plan.call.kept = carve.take<State>(rows * segment * plan.call.pairs);
    if (segments > 1) plan.call.checkpoints = carve.take<State>(rows * segments * 2 * plan.call.pairs);
    if (!plan.call.in_shared) plan.call.states = carve.take<State>(rows * 4 * plan.call.pairs);
  }
  plan.bytes = carve.used;
  return plan;
}

// Whole utterances have their turn, or results of one. Several segments cost another forward pass and less memory: they
// are taken where one is too much for a single utterance, or where fewer turns make up for it.
TimesPlan plan_times(const BeamAlignCudaParams& p) {
  const int64_t nbest = p.search.nbest, N = p.search.shape.N, T = larger(1, p.search.shape.T);
  const auto fitting = [&](int64_t segment) { return p.max_bytes / plan_times(p, nbest, segment).bytes; };
  const auto at_once = [&](int64_t segment) { return larger(1, smaller(N, fitting(segment))); };
  const auto turns = [&](int64_t segment) { return (N + at_once(segment) - 1) / at_once(segment); };
  // what a segment's frames and all checkpoints take together is then the least
  const int64_t several = int64_t(std::ceil(std::sqrt(2.0 * double(T))));
  const bool split = p.confidence && (fitting(T) < 1 || 3 * turns(several) < 2 * turns(T));
  const int64_t segment = split ? several : T;
  if (fitting(segment) > 0) return plan_times(p, nbest * at_once(segment), segment);
  return plan_times(p, larger(1, smaller(nbest, p.max_bytes / plan_times(p, 1, segment).bytes)), segment);
}

template <class X>
cudaError_t launch_times(X*, const BeamAlignCudaParams& p) {
  const BeamSearchCudaParams& search = p.search;
  const int64_t all = search.shape.N * search.nbest, T = search.shape.T;
  if (all == 0 || T == 0) return cudaSuccess;
  TimesPlan plan = plan_times(p);
  TimesCall& call = plan.call;
  call.search.p = search;
  lay_out_beam(search.shape, search.scratch, &call.search);
  call.paths = plan.paths;
  call.faults = plan.faults;
  call.starts = p.starts;
  call.ends = p.ends;
  call.confidence = p.confidence;
  ForcedAlignCudaParams align;
  align.device = search.device;
  align.stream = search.stream;
  align.scores_stride_n = search.scores_stride_n;
  align.scores_stride_t = search.scores_stride_t;
  align.targets_numel = align.targets_stride = T;
  align.blank = search.blank;
  align.scratch = plan.align_scratch;
  align.paths = plan.paths;
  align.path_scores = plan.path_scores;
  align.row_faults = plan.faults;
  align.nan_is_impossible = true;
  align.shape = plan.align;
  for (int64_t first = 0, rows; first < all; first += rows) {
    const int64_t n = first / search.nbest, end = plan.rows < search.nbest ? (n + 1) * search.nbest : all;
    rows = smaller(plan.rows, end - first);
    align.shape.N = rows;
    align.shape.targets_per_utterance = smaller(rows, search.nbest);
    align.scores = static_cast<const X*>(search.scores) + n * search.scores_stride_n;
    align.targets = search.tokens + first * T;
    align.input_lengths = search.lengths + n;
    align.target_lengths = search.token_lengths + first;
    int error = forced_align_cuda(align);
    if (error != 0) return cudaError_t(error);
    call.first_row = first;
    const int64_t shared = p.confidence && call.in_shared ? 4 * call.pairs * int64_t(sizeof(State)) : 0;
    error = launch(times_kernel<X>, dim3(unsigned(rows)), dim3(kTimesThreads), size_t(shared),
                   static_cast<cudaStream_t>(search.stream), call);
    if (error != 0) return cudaError_t(error);
  }
  return cudaSuccess;
}

// Calls run(a null pointer to the type of the scores).
template <class Run>
cudaError_t with_type(DType dtype, Run run) {
  switch (dtype) {
#ifndef FASTCTC_ONLY_FLOAT32
    case DType::float16:
      return run(static_cast<__half*>(nullptr));
    case DType::bfloat16:
      return run(static_cast<__nv_bfloat16*>(nullptr));
    case DType::float64:
      return run(static_cast<double*>(nullptr));
#endif
    case DType::float32:
      return run(static_cast<float*>(nullptr));
    default:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace
}  // namespace cuda

int64_t beam_search_cuda_scratch_bytes(const BeamSearchCudaShape& shape) {
  cuda::BeamCall call{};
  return cuda::lay_out_beam(shape, nullptr, &call);
}

int beam_search_cuda(const BeamSearchCudaParams& params) {
  const cuda::DeviceScope scope(params.device);
  if (scope.error() != cudaSuccess) return int(scope.error());
  cuda::BeamCall call{};
  call.p = params;
  if (params.fusion) call.fusion = *params.fusion;
  call.keep_share = std::exp(-params.beam_threshold);
  cuda::lay_out_beam(params.shape, params.scratch, &call);
  return int(cuda::with_type(params.shape.dtype, [&](auto* scores) { return cuda::launch_search(scores, call); }));
}

int64_t beam_align_cuda_scratch_bytes(const BeamAlignCudaParams& params) {
  return params.search.shape.N > 0 ? cuda::plan_times(params).bytes : 0;
}

int beam_align_cuda(const BeamAlignCudaParams& params) {
  const cuda::DeviceScope scope(params.search.device);
  if (scope.error() != cudaSuccess) return int(scope.error());
  return int(
      cuda::with_type(params.search.shape.dtype, [&](auto* scores) { return cuda::launch_times(scores, params); }));
}

}  // namespace fastctc
