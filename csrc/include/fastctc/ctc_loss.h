// The CTC loss (Graves et al. 2006, "Connectionist Temporal Classification") and its gradient on host memory.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace fastctc {

enum class Reduction : int {
  none = 0,
  mean = 1,  // over the batch, of loss / max(target_length, 1)
  sum = 2,
};

// Every pointer is to host memory. "real" is double for float64 scores and float for all others.
struct CtcLossParams {
  const void* scores = nullptr;  // (T, N, C) in dtype; classes contiguous, the other strides below
  DType dtype = DType::float32;
  int64_t T = 0, N = 0, C = 0;                       // frames, rows, classes; C < 2^31
  int64_t scores_stride_t = 0, scores_stride_n = 0;  // in elements

  const int64_t* targets = nullptr;  // (N, targets_numel) padded, or (targets_numel) concatenated
  int64_t targets_numel = 0;
  int64_t targets_stride = 0;               // in elements between rows; 0: concatenated
  const int64_t* input_lengths = nullptr;   // (N)
  const int64_t* target_lengths = nullptr;  // (N)
  int64_t blank = 0;                        // 0 <= blank < C; inside a target it is a label like any other

  bool from_logits =
      false;  // apply log-softmax over the classes first; otherwise scores are taken as log-probabilities
  bool zero_infinity = false;  // rows that no path can emit: loss 0 and gradient 0 instead of inf and NaN
  bool true_grad = false;      // log-probabilities only: leave out the exp(scores) term of torch's gradient
  Reduction reduction = Reduction::mean;

  const void* grad_out = nullptr;  // real, (N) for Reduction::none, else one value; null: ones
  void* loss = nullptr;            // real, (N) for Reduction::none, else one value; null: not wanted
  void* grad = nullptr;            // (T, N, C) in dtype, classes contiguous; null: not wanted. Padded frames become 0
  int64_t grad_stride_t = 0, grad_stride_n = 0;  // in elements

  int num_threads = 1;
};

enum class CtcLossFault : int {
  none = 0,
  input_length_above_T = 1,
  input_length_negative = 2,
  target_length_negative = 3,
  target_length_above_width = 4,  // padded targets
  target_lengths_sum = 5,         // concatenated targets: the sum is not targets_numel
  label_out_of_range = 6,
  label_is_blank = 7,             // forced alignment only
  target_length_above_bound = 8,  // on a device: longer than the caller said a target, or all of them, could be
};

struct CtcLossStatus {
  CtcLossFault fault = CtcLossFault::none;
  int64_t row = -1;       // of the batch
  int64_t value = 0;      // the length or label at fault
  int64_t position = -1;  // of the label within its target
};

// The first fault among T, N, C, the layout of the targets, lengths and labels. `input_lengths`, `target_lengths` and
// `targets` may each be null where the host cannot see them; labels are looked at only where their counts are there.
CtcLossStatus ctc_loss_check(const CtcLossParams& params);

// Checks lengths and labels first and writes nothing where one is at fault.
// Throws std::bad_alloc when workspace cannot be had. Safe to call from many threads at once.
CtcLossStatus ctc_loss_cpu(const CtcLossParams& params);

// Stored forward probabilities above this many MiB (over all threads of a call) are kept as checkpoints only and
// recomputed; about one more forward pass. At least 1.
void set_max_workspace_mb(int64_t mb);
int64_t max_workspace_mb();

}  // namespace fastctc
