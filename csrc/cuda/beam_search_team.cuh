// The threads of one utterance's beam: a warp, or a block of several.
#pragma once

#include "beam_search_layout.cuh"
#include "ctc_loss_block.cuh"

namespace fastctc {
namespace cuda {

constexpr int kMostTeamWarps = int(kBeamSearchCudaMostBeams) / 32;

__device__ __forceinline__ float exact_product(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double exact_product(double a, double b) { return __dmul_rn(a, b); }

template <class Scalar>
struct Extremes {
  Scalar high, other;
};

// Everything here is called by all threads of the team, and gives all of them the same result.
template <class Scalar, bool one_warp>
struct Team {
  // in shared memory, both halves in turn so that one barrier does
  struct Shared {
    int counts[2][kMostTeamWarps];
    Extremes<Scalar> extremes[2][kMostTeamWarps];
  };

  Shared& shared;
  int turn = 0;

  static __device__ __forceinline__ void sync() {
    if (one_warp)
      __syncwarp();
    else
      __syncthreads();
  }
  static __device__ __forceinline__ int warps() { return int(blockDim.x) / 32; }
  static __device__ __forceinline__ int warp() { return int(threadIdx.x) / 32; }
  static __device__ __forceinline__ unsigned lanes_below() { return (1u << threadIdx.x % 32) - 1; }

  // The sum of what each warp counts, which its threads agree on.
  __device__ int sum(int of_warp) {
    if (one_warp) return of_warp;
    turn ^= 1;
    if (threadIdx.x % 32 == 0) shared.counts[turn][warp()] = of_warp;
    __syncthreads();
    int all = 0;
    for (int w = 0; w < warps(); ++w) all += shared.counts[turn][w];
    return all;
  }

  // How many say yes; `rank` is how many of those come before this thread.
  __device__ int rank(bool yes, int* rank) {
    const unsigned votes = __ballot_sync(kAllLanes, yes);
    int all = __popc(votes), before = __popc(votes & lanes_below());
    if (!one_warp) {
      turn ^= 1;
      if (threadIdx.x % 32 == 0) shared.counts[turn][warp()] = all;
      __syncthreads();
      all = 0;
      for (int w = 0; w < warps(); ++w) {
        if (w < warp()) before += shared.counts[turn][w];
        all += shared.counts[turn][w];
      }
    }
    *rank = before;
    return all;
  }

  // The largest of both.
  __device__ Extremes<Scalar> largest(Scalar high, Scalar other) {
    Extremes<Scalar> e{reduce_lanes<32>(high, Largest{}), reduce_lanes<32>(other, Largest{})};
    if (one_warp) return e;
    turn ^= 1;
    if (threadIdx.x % 32 == 0) shared.extremes[turn][warp()] = e;
    __syncthreads();
    e = shared.extremes[turn][0];
    for (int w = 1; w < warps(); ++w) {
      e.high = Largest{}(e.high, shared.extremes[turn][w].high);
      e.other = Largest{}(e.other, shared.extremes[turn][w].other);
    }
    return e;
  }
};

}  // namespace cuda
}  // namespace fastctc
