// CTC prefix beam search on a CUDA device: beam_search.h's results. Everything is asynchronous on the caller's stream;
// nothing allocates, waits for the device or reads its memory.
#pragma once

#include <cstdint>

#include "ctc_loss.h"

namespace fastctc {

struct FusionView;  // core/fusion.h

constexpr int64_t kBeamSearchCudaMostBeams = 256;
// With a fusion the bound that a narrow list of classes needs does not hold, so so many best classes of a frame, the
// blank counted, make new prefixes (or beam_size + 2, if that is more), however large top_k is.
constexpr int64_t kBeamSearchCudaFusedClasses = 256;

// What the host knows of a batch.
struct BeamSearchCudaShape {
  DType dtype = DType::float32;
  int64_t N = 0, T = 0, C = 0;  // utterances, frames, classes; each below 2^31
  int64_t beam_size = 100;      // at most kBeamSearchCudaMostBeams; T * beam_size at most 2^29
  int64_t top_k = 0;            // 0: all
  bool fused = false;
};

// Host arithmetic. With K = min(C, beam_size + 2, top_k), or min(C, max(beam_size + 2, 256), top_k) with a fusion, each
// frame of each utterance takes 32 + 8 K bytes (float64: 32 + 12 K) for its classes and 16 beam_size bytes for
// prefixes.
int64_t beam_search_cuda_scratch_bytes(const BeamSearchCudaShape& shape);

// Every pointer but `fusion` is to memory of `device`.
struct BeamSearchCudaParams {
  int device = 0;
  void* stream = nullptr;  // a cudaStream_t of that device
  BeamSearchCudaShape shape;

  const void* scores = nullptr;                      // (N, T, C) in dtype; classes contiguous
  int64_t scores_stride_n = 0, scores_stride_t = 0;  // in elements
  const int64_t* lengths = nullptr;                  // (N); an utterance whose length is not in [0, T] has no results

  int64_t blank = 0;  // 0 <= blank < C
  bool from_logits = false;
  double beam_threshold = 1e300, top_p = 1, blank_skip_threshold = 1;  // as in BeamSearchOptions
  // On the host, to tables on the device; null exactly where not shape.fused. fusion_largest_bonus() is at most 80, in
  // float64 700: what one token adds is a factor of a scaled mass.
  const FusionView* fusion = nullptr;

  void* scratch = nullptr;  // beam_search_cuda_scratch_bytes, a multiple of 256 as address

  // The nbest best of each utterance, at most beam_size, as in BeamResult.
  int64_t nbest = 1;
  int64_t* tokens = nullptr;         // (N, nbest, T); the blank past each length
  int64_t* token_lengths = nullptr;  // (N, nbest); 0 where an utterance has fewer results
  double* final_scores = nullptr;    // (N, nbest); -inf where an utterance has fewer results
  double* lm_scores = nullptr;       // (N, nbest)
};

// Returns 0, or the cudaError_t of the first launch that failed. The caller's current device is left as it was.
int beam_search_cuda(const BeamSearchCudaParams& params);

// When each token of the results is emitted, and how surely: by forced alignment of each result, as in BeamResult.
struct BeamAlignCudaParams {
  BeamSearchCudaParams
      search;              // as beam_search_cuda was called, on the same stream; its scratch is still as it left it
  int64_t max_tokens = 0;  // no result is longer; T is always right. A result that is has no times
  int64_t max_bytes = 0;   // results take turns so that scratch keeps to it, if it holds those of one utterance

  void* scratch = nullptr;  // beam_align_cuda_scratch_bytes, a multiple of 256 as address

  int64_t* starts = nullptr;    // (N, nbest, T); 0 past each length
  int64_t* ends = nullptr;      // likewise
  float* confidence = nullptr;  // (N, nbest, T); 0 past each length. Null: not wanted
};

// Host arithmetic. For each frame of each result whose turn it is 12 bytes (float64: 16), 8 more from 512 max_tokens
// on, and 1/4 byte for each of max_tokens + 1 pairs of states, rounded up to 32. With confidence 8 bytes more for each
// pair of each frame, or about 8 sqrt(8 T) for each pair of each result, where that is too much.
int64_t beam_align_cuda_scratch_bytes(const BeamAlignCudaParams& params);

// As beam_search_cuda.
int beam_align_cuda(const BeamAlignCudaParams& params);

}  // namespace fastctc
