// Forced alignment on a CUDA device: forced_align.h's paths, bit for bit. Everything is asynchronous on the caller's
// stream; nothing allocates, waits for the device or reads its memory.
#pragma once

#include <cstdint>

#include "forced_align.h"

namespace fastctc {

// What the host knows of a batch.
struct ForcedAlignCudaShape {
  DType dtype = DType::float32;
  int64_t T = 0, N = 0, C = 0;  // frames, rows, classes; each below 2^31
  int64_t max_labels = 0;       // no target is longer, below 2^30; a row on the device that is has a fault
  bool from_logits = false;
  int64_t targets_per_utterance = 1;  // N is a multiple; rows n * this to (n + 1) * this - 1 have utterance n's scores
};

// Host arithmetic. Each frame of each row takes 1/4 byte for each of max_labels + 1 pairs of states, rounded up to 32
// pairs; 8 bytes for logits; and 8 bytes where there may be 512 labels and more.
int64_t forced_align_cuda_scratch_bytes(const ForcedAlignCudaShape& shape);

// Every pointer is to memory of `device`. "real" is double for float64 scores and float for all others.
struct ForcedAlignCudaParams {
  int device = 0;
  void* stream = nullptr;  // a cudaStream_t of that device
  ForcedAlignCudaShape shape;

  const void* scores = nullptr;                      // (T, N / targets_per_utterance, C) in dtype; classes contiguous
  int64_t scores_stride_t = 0, scores_stride_n = 0;  // in elements

  const int64_t* targets = nullptr;  // (N, targets_numel) padded, or (targets_numel) concatenated
  int64_t targets_numel = 0;
  int64_t targets_stride = 0;               // in elements between rows; 0: concatenated
  const int64_t* input_lengths = nullptr;   // (N / targets_per_utterance)
  const int64_t* target_lengths = nullptr;  // (N)
  int64_t blank = 0;                        // 0 <= blank < C; never a label
  bool nan_is_impossible = false;  // NaN and +inf count as -inf; else a row where a path can read one has a fault

  void* scratch = nullptr;  // forced_align_cuda_scratch_bytes, a multiple of 256 as address

  int64_t* paths = nullptr;       // (N, T) contiguous, as in forced_align.h
  void* path_scores = nullptr;    // real, (N, T) contiguous
  int32_t* row_faults = nullptr;  // (N) ForcedAlignFault
};

// Returns 0, or the cudaError_t of the first launch that failed. The caller's current device is left as it was.
int forced_align_cuda(const ForcedAlignCudaParams& params);

}  // namespace fastctc
