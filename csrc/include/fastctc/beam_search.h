// CTC prefix beam search on host memory (Hannun et al. 2014), summing the probabilities of all paths of a prefix.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "fastctc/ctc_loss.h"

namespace fastctc {

struct FusionView;  // core/fusion.h

struct BeamSearchOptions {
  int64_t C = 0;      // classes; C < 2^31
  int64_t blank = 0;  // 0 <= blank < C
  int64_t beam_size = 100;
  bool from_logits =
      false;  // apply log-softmax over the classes first; otherwise scores are taken as log-probabilities
  // Pruning bears on new prefixes only: blank, the repetition of a prefix's last token, and what flows into a prefix
  // that is in the beam are always considered.
  double beam_threshold = 1e300;       // nats below the frame's best prefix from which a prefix is dropped
  int64_t top_k = 0;                   // only so many best classes of a frame, blank counted, make new prefixes; 0: all
  double top_p = 1;                    // only the best classes that reach this probability together; 1: all
  double blank_skip_threshold = 1;     // a frame whose blank is more probable counts as blank; 1: none
  const FusionView* fusion = nullptr;  // to host memory that lives as long as the search; null: none
  const void* bonus_rows = nullptr;    // make_bonus_rows's block of it, which lives as long; null: none

  bool timesteps = false;   // find out when each token is emitted
  bool confidence = false;  // and how surely; needs timesteps
};

// One labelling. Scores are natural logarithms.
struct BeamResult {
  std::vector<int32_t> tokens;
  double score = 0;     // of all paths that the beam has seen, and the fusion's part
  double lm_score = 0;  // the fusion's part
  // Of each token, on the best path that spells the labelling: its first frame, and the one after its last.
  std::vector<int32_t> starts, ends;
  // The mean probability of the token on these frames, weighted by its posterior given the labelling.
  std::vector<float> confidence;
};

// Best first. Of equal scores the shorter comes first, then the one whose tokens come first in lexicographic order.
using BeamResults = std::vector<BeamResult>;

// One utterance, frame by frame. Not safe to call from several threads at once.
//
// Sums are in float for float16, bfloat16 and float32 scores and in double for float64: a prefix more than 87 nats
// (double: 708) below the best one of its frame counts as impossible. So do NaN scores; a frame without a finite best
// score ends all prefixes.
class BeamSearch {
 public:
  // Throws std::bad_alloc.
  BeamSearch(const BeamSearchOptions& options, DType dtype);
  ~BeamSearch();
  BeamSearch(const BeamSearch&) = delete;
  BeamSearch& operator=(const BeamSearch&) = delete;

  // Back to before the first frame; keeps the memory.
  void restart();
  // (frames, C) scores, classes contiguous and frames `stride` elements apart. Throws std::bad_alloc, and
  // std::range_error where one token adds more than the sums can hold (80 nats, in double 700); after either only
  // restart() may follow.
  void advance(const void* scores, int64_t stride, int64_t frames);
  // At most `nbest`, as if the utterance ended here, without timesteps. Throws std::bad_alloc.
  BeamResults best(int64_t nbest);
  // Adds timesteps and confidence as the options say, from all rows that advance() was given. Throws std::bad_alloc.
  void align(const void* scores, int64_t stride, int64_t frames, BeamResults& results) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Every pointer is to host memory.
struct BeamSearchParams {
  BeamSearchOptions options;
  const void* scores = nullptr;  // (N, T, C) in dtype; classes contiguous, the other strides below
  DType dtype = DType::float32;
  int64_t N = 0, T = 0;
  int64_t scores_stride_n = 0, scores_stride_t = 0;  // in elements
  const int64_t* lengths = nullptr;                  // (N), each in [0, T]
  int64_t nbest = 1;
  int num_threads = 1;
};

// The `nbest` best of each utterance. Throws what BeamSearch throws. Safe to call from many threads at once.
std::vector<BeamResults> beam_search_cpu(const BeamSearchParams& params);

}  // namespace fastctc
