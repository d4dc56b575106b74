// When the tokens of a labelling are emitted, and how surely.
#pragma once

#include "fastctc/beam_search.h"

namespace fastctc {

struct BeamEmissions {
  const void* scores;  // frame t at scores + t * stride, C classes each
  DType dtype;
  int64_t stride;  // in elements
  int64_t frames, C;
  int64_t blank;
  const double* largest;          // of each frame the largest score
  const double* log_normalisers;  // one for each frame, of logits; null: the scores are log-probabilities
};

// Fills in starts and ends, and confidence where wanted. Throws std::bad_alloc.
void align_result(const BeamEmissions& emissions, bool confidence, BeamResult& result);

}  // namespace fastctc
