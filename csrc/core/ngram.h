// A back-off n-gram model as an automaton: a state is the longest known suffix of the words read so far.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace fastctc {

// A context: words that an n-gram of the model begins with. Node 0 is the empty one.
struct NGramNode {
  float backoff;    // natural log, added where the context does not know the word
  int32_t shorter;  // the longest proper suffix that is a context
  float best;       // the largest score any word has here
};

// An n-gram of two words or more: the context before its last word, and that word.
struct NGramArc {
  int32_t node;  // -1: a free slot of the hash table
  int32_t word;
  float score;   // ln p(word | context)
  int32_t next;  // the context after the word
};

struct NGramUnigram {
  float score;
  int32_t next;
};

// One step of the automaton, back-off included.
struct NGramStep {
  float score;
  int32_t next;
};

// Tables in host or device memory. Built by cpu/ngram_builder.h.
struct NGramView {
  const NGramNode* nodes = nullptr;  // null: no model
  const NGramArc* arcs = nullptr;    // (slots), a hash table with linear probing, never full
  const NGramUnigram* unigrams = nullptr;
  const NGramStep* steps = nullptr;  // (nodes, words), of models with few of both; else null
  uint32_t slots = 0;
  int32_t words = 0;
  int32_t unknown = 0;  // the word that stands for all others; always there
  int32_t end = -1;     // end of sentence; -1: the model has none
  int32_t start = 0;    // node at the start of a sentence
  float best = 0;       // the largest score of any word anywhere
};

FASTCTC_HOST_DEVICE static inline uint32_t ngram_slot(int32_t node, int32_t word, uint32_t slots) {
  uint64_t key = static_cast<uint64_t>(static_cast<uint32_t>(node)) << 32 | static_cast<uint32_t>(word);
  key = (key ^ key >> 32) * 0xd6e8feb86659fd93u;
  key = (key ^ key >> 32) * 0xd6e8feb86659fd93u;
  return static_cast<uint32_t>((key >> 32) * slots >> 32);
}

// The n-gram of a context and a word, or null.
FASTCTC_HOST_DEVICE static inline const NGramArc* ngram_find(const NGramView& m, int32_t node, int32_t word) {
  for (uint32_t slot = ngram_slot(node, word, m.slots);; slot = slot + 1 == m.slots ? 0 : slot + 1) {
    const NGramArc* arc = m.arcs + slot;
    if (arc->node == node && arc->word == word) return arc;
    if (arc->node < 0) return nullptr;
  }
}

// ln p(word | context), and the context after the word.
FASTCTC_HOST_DEVICE static inline float ngram_score(const NGramView& m, int32_t node, int32_t word, int32_t* next) {
  if (m.steps != nullptr) {
    const NGramStep step = m.steps[static_cast<int64_t>(node) * m.words + word];
    *next = step.next;
    return step.score;
  }
  float score = 0;
  for (; node != 0; node = m.nodes[node].shorter) {
    if (const NGramArc* arc = ngram_find(m, node, word)) {
      *next = arc->next;
      return score + arc->score;
    }
    score += m.nodes[node].backoff;
  }
  *next = m.unigrams[word].next;
  return score + m.unigrams[word].score;
}

}  // namespace fastctc
