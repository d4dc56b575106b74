// What the driver (forced_align.cpp) asks of each SIMD target: one row of the batch, start to end.
#pragma once

#include <stdint.h>

namespace fastctc {

struct AlignUtterance {
  const void* scores;  // frame t at scores + t * scores_stride, C classes each
  int64_t scores_stride;
  const int64_t* labels;  // S of them, each in [0, C)
  int64_t T, C, S;        // T >= 1, and frames enough for the labels
  int64_t blank;
  bool from_logits;
  bool nan_is_impossible;  // NaN and +inf count as -inf; else a row where a path can read one has a fault
  const double* largest;   // of each frame the largest score, NaN passed over; null: not known
  int64_t back_bytes;      // how much of back-pointers this row may keep before it checkpoints
  void* workspace;         // workspace_bytes() of it, 64-byte aligned
  int64_t* path;           // out: T classes
  void* path_scores;       // out: T reals
  int32_t fault;           // out: a ForcedAlignFault; path and scores are written only where there is none
};

struct ForcedAlignKernels {
  int64_t (*workspace_bytes)(int dtype, const AlignUtterance& row);
  void (*run)(int dtype, AlignUtterance& row);
};

extern const ForcedAlignKernels forced_align_kernels_avx512;
extern const ForcedAlignKernels forced_align_kernels_avx2;
extern const ForcedAlignKernels forced_align_kernels_vec128;
extern const ForcedAlignKernels forced_align_kernels_portable;

}  // namespace fastctc
