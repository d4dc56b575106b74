// What the beam search's kernels are told, and where everything lies in memory.
#pragma once

#include "core/fusion.h"
#include "ctc_loss_layout.cuh"
#include "fastctc/beam_search_cuda.h"

namespace fastctc {
namespace cuda {

enum FrameKind : int {
  kOrdinary = 0,
  kOnlyBlank = 1,  // the blank is so probable that nothing else counts
  kNothing = 2,    // without a finite best score: no prefix has a probability from here on
};

// What a frame says. After it come the classes that may make new prefixes, and then e^(score - top) of each, the
// largest first; the blank is not among them.
template <class Scalar>
struct alignas(16) FrameHead {
  double log_scale;  // true probabilities are e^(score - top + log_scale)
  Scalar top;        // the best score
  Scalar blank;      // e^(score - top) of the blank
  int tokens;
  int kind;
};

template <class Scalar>
struct BeamLimits;
template <>
struct BeamLimits<float> {
  static constexpr float kTiny = 1.17549435e-38f;  // the smallest normal number: what is below has no mass
  static constexpr float kLowest = -87.4f;         // and its logarithm, rounded down
};
template <>
struct BeamLimits<double> {
  static constexpr double kTiny = 2.2250738585072014e-308;
  static constexpr double kLowest = -708.4;
};

// 0 for NaN and below the normal range: a bonus would make much of the few bits that are left there.
template <class Scalar>
__device__ __forceinline__ Scalar normal(Scalar x) {
  return x >= BeamLimits<Scalar>::kTiny ? x : Scalar(0);
}

using NodeKey = unsigned long long;
constexpr NodeKey kFreeNode = ~NodeKey(0);

// What every kernel of a call may need, passed by value.
struct BeamCall {
  BeamSearchCudaParams p;
  FusionView fusion;
  double keep_share;     // e^-beam_threshold
  int classes;           // of a frame that are looked at, the blank counted
  int room;              // of a frame's classes, in whole 16 bytes
  int64_t record_bytes;  // of a frame
  char* records;         // (N, T) of them
  NodeKey* nodes;  // (N, T, 2 * beam_size): of each utterance a hash table of (parent, token); a prefix is its place
};

template <class Scalar>
__device__ __forceinline__ char* record_of(const BeamCall& call, int64_t n, int64_t t) {
  return call.records + (n * call.p.shape.T + t) * call.record_bytes;
}
template <class Scalar>
__device__ __forceinline__ int* classes_of(char* record) {
  return reinterpret_cast<int*>(record + sizeof(FrameHead<Scalar>));
}
template <class Scalar>
__device__ __forceinline__ Scalar* values_of(char* record, int room) {
  return reinterpret_cast<Scalar*>(record + sizeof(FrameHead<Scalar>) + size_t(room) * sizeof(int));
}

// Carves the scratch memory, which may be null, and returns its size.
inline int64_t lay_out_beam(const BeamSearchCudaShape& s, void* scratch, BeamCall* call) {
  int64_t sufficient = s.beam_size + 2;
  if (s.fused) sufficient = larger(sufficient, kBeamSearchCudaFusedClasses);
  if (s.top_k > 0) sufficient = smaller(sufficient, s.top_k);
  call->classes = int(smaller(s.C, sufficient));
  call->room = int(round_up(call->classes, 4));
  const bool wide = s.dtype == DType::float64;
  const int64_t head = wide ? sizeof(FrameHead<double>) : sizeof(FrameHead<float>);
  call->record_bytes = head + call->room * int64_t(sizeof(int) + (wide ? sizeof(double) : sizeof(float)));
  Carver carve{static_cast<char*>(scratch)};
  call->records = carve.take<char>(s.N * s.T * call->record_bytes);
  call->nodes = carve.take<NodeKey>(2 * s.N * s.T * s.beam_size);
  return carve.used;
}

}  // namespace cuda
}  // namespace fastctc
