// The CTC loss (Graves et al. 2006, "Connectionist Temporal Classification") and its gradient on a CUDA device.
// Everything is asynchronous on the caller's stream; nothing allocates, waits for the device or reads its memory.
#pragma once

#include <cstdint>

#include "ctc_loss.h"

namespace fastctc {

// What the host knows of a batch. The lengths themselves may be known to the device alone, so that the two bounds may
// be larger than what they turn out to be.
struct CtcLossCudaShape {
  DType dtype = DType::float32;
  int64_t T = 0, N = 0, C = 0;  // frames, rows, classes; each below 2^31 - 2^16
  int64_t max_labels = 0;       // no target is longer, below 2^30
  int64_t total_labels = 0;     // nor are all targets together
  bool want_grad = true;
};

struct CtcLossCudaMemory {
  int64_t saved_bytes;    // what the backward call needs of the forward call; 0 without want_grad
  int64_t scratch_bytes;  // free once the forward call's work is done
};

// Host arithmetic. Where the scratch memory of all rows together would be above max_workspace_bytes, rows take turns in
// it; where that of a single row would be, its forward probabilities are checkpointed and computed a second time. What
// one row needs then is taken whatever the limit. Both calls below have to be told the same limit.
CtcLossCudaMemory ctc_loss_cuda_memory(const CtcLossCudaShape& shape, int64_t max_workspace_bytes);

// Every pointer is to memory of `device`. "real" is double for float64 scores and float for all others.
struct CtcLossCudaParams {
  int device = 0;
  void* stream = nullptr;  // a cudaStream_t of that device
  CtcLossCudaShape shape;

  const void* scores = nullptr;                      // (T, N, C) in dtype; classes contiguous
  int64_t scores_stride_t = 0, scores_stride_n = 0;  // in elements

  const int64_t* targets = nullptr;  // (N, targets_numel) padded, or (targets_numel) concatenated
  int64_t targets_numel = 0;
  int64_t targets_stride = 0;               // in elements between rows; 0: concatenated
  const int64_t* input_lengths = nullptr;   // (N)
  const int64_t* target_lengths = nullptr;  // (N)
  int64_t blank = 0;                        // 0 <= blank < C; inside a target it is a label like any other

  bool from_logits = false;    // apply log-softmax over the classes first
  bool zero_infinity = false;  // rows that no path can emit, or with a fault: loss 0 and gradient 0
  bool true_grad = false;      // log-probabilities only: leave out the exp(scores) term of torch's gradient
  Reduction reduction = Reduction::mean;

  int64_t max_workspace_bytes = int64_t(256) << 20;
  void* saved = nullptr;    // saved_bytes of ctc_loss_cuda_memory, a multiple of 256 as address
  void* scratch = nullptr;  // scratch_bytes, likewise; forward only

  // Forward only. A row with a fault has the loss inf and the gradient NaN: over all T frames where its input length is
  // at fault, else over the frames it has.
  void* loss = nullptr;           // real, (N) for Reduction::none, else one value
  int32_t* row_faults = nullptr;  // (N) CtcLossFault of each row, or null

  // Backward only.
  const void* grad_out = nullptr;                // real, (N) for Reduction::none, else one value; null: ones
  void* grad = nullptr;                          // (T, N, C) in dtype, classes contiguous; every element is written
  int64_t grad_stride_t = 0, grad_stride_n = 0;  // in elements
};

// Each returns 0, or the cudaError_t of the first launch that failed. The caller's current device is left as it was.
// Results do not depend on timing: two calls give the same bits.
int ctc_loss_cuda_forward(const CtcLossCudaParams& params);
// May be called any number of times after one forward call with the same scores, shape and options.
int ctc_loss_cuda_backward(const CtcLossCudaParams& params);

// In words; static memory.
const char* cuda_error_text(int error);

}  // namespace fastctc
