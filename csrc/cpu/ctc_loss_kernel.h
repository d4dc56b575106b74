// What the driver (ctc_loss.cpp) asks of each SIMD target: one row of the batch, start to end.
#pragma once

#include <stdint.h>

namespace fastctc {

struct CtcUtterance {
  const void* scores;  // frame t at scores + t * scores_stride, C classes each
  int64_t scores_stride;
  void* grad;  // the same layout, or null: loss only
  int64_t grad_stride;
  const int64_t* labels;  // S of them, each in [0, C)
  int64_t T, C, S;        // T >= 1
  int64_t blank;
  bool from_logits;
  bool subtract_only;   // gradient without the exp(scores) term
  bool zero_infinity;   // where no path has a probability, gradient 0 instead of NaN
  bool stream_grad;     // write the gradient past the caches
  double grad_scale;    // multiplies the gradient
  int64_t alpha_bytes;  // how much stored forward probability this row may take before it checkpoints
  void* workspace;      // workspace_bytes() of it, 64-byte aligned
  double loss;          // out: inf where no path has a probability, NaN where a score that matters is NaN
};

struct CtcLossKernels {
  int64_t (*workspace_bytes)(int dtype, const CtcUtterance& row);
  void (*run)(int dtype, CtcUtterance& row);
  // the gradient of a row that no path can emit
  void (*fill_impossible)(int dtype, const CtcUtterance& row);
};

extern const CtcLossKernels ctc_loss_kernels_avx512;
extern const CtcLossKernels ctc_loss_kernels_avx2;
extern const CtcLossKernels ctc_loss_kernels_vec128;
extern const CtcLossKernels ctc_loss_kernels_portable;

}  // namespace fastctc
