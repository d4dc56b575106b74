// What the driver (beam_search.cpp) asks of each SIMD target: the beam of one utterance, frame by frame.
#pragma once

#include <stdint.h>

namespace fastctc {

// What each class adds to any state: the sum of two rows, that of the state's n-gram node and that of its hotword node.
// Where no word is open, a boundary between words adds what the former says. Rows go on to the end of a vector, and the
// former are -inf at the blank and past C.
struct BonusRows {
  static constexpr int64_t kMostClasses = 64;  // there are no rows of more

  const float *ngram, *symbols;          // null: there are no rows
  int64_t ngram_stride, symbols_stride;  // from node to node
  const int32_t* boundaries;             // so many classes
  int32_t boundary_count;
};

// Rewards or forbids prefixes, through functions of a baseline translation unit. A prefix's state is so many int32.
struct BeamFusion {
  static constexpr int kStateInts = 3;  // n-gram node, open word or 0, hotword node

  const void* self;
  void (*start)(const void* self, int32_t* state);
  // Natural-log bonus of one more token, -inf where it is forbidden, and the state after it.
  double (*extend)(const void* self, const int32_t* state, int32_t token, int32_t* next);
  // What one more token adds at most: any, and each of those below `classes`.
  double (*largest_bonus)(const void* self, const int32_t* state);
  void (*largest_bonuses)(const void* self, const int32_t* state, int32_t classes, float* bonuses);
  BonusRows rows;
  double (*finish)(const void* self, const int32_t* state);
};

struct BeamOptions {
  int64_t C;
  int64_t blank;
  int64_t beam_size;
  int64_t top_k;  // 0: all
  double top_p;   // 1 or more: all
  double beam_threshold;
  double blank_skip_threshold;  // 1 or more: none
  bool from_logits;
  const BeamFusion* fusion;  // null: none
};

// The prefixes seen so far as a tree, an array for each field. Node 0 stands for "none" and node 1 for the empty
// prefix; a parent's index is below its children's.
struct BeamTrie {
  int32_t *parent, *token, *depth, *first_child, *next_sibling;
  int32_t* slot;   // where in the beam the prefix is, or -1
  int32_t* moved;  // scratch
  int64_t count, capacity;
};

struct BeamHypothesis {
  int32_t node;
  double score, lm_score;
};

// A beam between two frames.
struct BeamState {
  BeamOptions options;
  int dtype;
  void* workspace;  // workspace_bytes() of it, 64-byte aligned
  BeamTrie trie;    // of a capacity of at least 2 * beam_size + 4

  int64_t slots;     // prefixes in the beam
  int64_t exponent;  // true masses are the stored ones times 2^exponent e^log_scale
  double log_scale;
  int current;             // which of the two sets of masses is valid
  double excessive_bonus;  // of one token, above what the sums can hold: the search has stopped; else 0

  // advance() writes the frames' here, unless null
  double* largest;          // scores
  double* log_normalisers;  // of logits
};

struct BeamKernels {
  int64_t (*workspace_bytes)(const BeamState& state);
  void (*start)(BeamState& state);
  // Takes `frames` rows of scores and returns how many it has taken: fewer where the trie must have grown first, or
  // where there is an excessive bonus.
  int64_t (*advance)(BeamState& state, const void* scores, int64_t stride, int64_t frames);
  // Writes the best `count` at most, best first, and returns how many. Leaves the beam as it is.
  int64_t (*best)(BeamState& state, int64_t count, BeamHypothesis* out);
};

extern const BeamKernels beam_kernels_avx512;
extern const BeamKernels beam_kernels_avx2;
extern const BeamKernels beam_kernels_vec128;
extern const BeamKernels beam_kernels_portable;

}  // namespace fastctc
