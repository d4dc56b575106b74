// Forced alignment on host memory: the most probable CTC path that spells a given target (Viterbi 1967 on the lattice
// of Graves et al. 2006).
#pragma once

#include <cstdint>

#include "fastctc/ctc_loss.h"

namespace fastctc {

// Every pointer is to host memory. "real" is double for float64 scores and float for all others.
struct ForcedAlignParams {
  const void* scores = nullptr;  // (T, N, C) in dtype; classes contiguous, the other strides below
  DType dtype = DType::float32;
  int64_t T = 0, N = 0, C = 0;                       // frames, rows, classes; C < 2^31
  int64_t scores_stride_t = 0, scores_stride_n = 0;  // in elements

  const int64_t* targets = nullptr;  // (N, targets_numel) padded, or (targets_numel) concatenated
  int64_t targets_numel = 0;
  int64_t targets_stride = 0;               // in elements between rows; 0: concatenated
  const int64_t* input_lengths = nullptr;   // (N)
  const int64_t* target_lengths = nullptr;  // (N)
  int64_t blank = 0;                        // 0 <= blank < C; never a label

  bool from_logits = false;  // the path's scores are log-softmax values; the path itself does not depend on it

  int64_t* paths = nullptr;       // (N, T) contiguous: the class of each frame. Padded frames are the blank
  void* path_scores = nullptr;    // real, (N, T) contiguous: score of that class at that frame. Padded frames are 0
  int32_t* row_faults = nullptr;  // (N) ForcedAlignFault. A row at fault has path -1 and score -inf, or NaN, throughout

  int num_threads = 1;
};

enum class ForcedAlignFault : int32_t {
  none = 0,
  impossible = 1,    // too few frames, or every path has a score of -inf
  not_a_number = 2,  // NaN or +inf where a path can read it, or (logits) a frame that has no log-softmax
  bad_input = 3,     // a length or label out of range, or a label that is the blank; only where the host cannot see it
};

// Of two equal predecessors the nearer one wins: to stay, then to come from the blank before, then to skip that blank.
// At the end the label wins over the blank after it. Sums are of doubles for every dtype.
//
// Checks lengths and labels first and writes nothing where one is at fault.
// Throws std::bad_alloc when workspace cannot be had. Safe to call from many threads at once.
CtcLossStatus forced_align_cpu(const ForcedAlignParams& params);

}  // namespace fastctc
