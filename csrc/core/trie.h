// Tries over symbols: the spellings of words, and the phrases that hotwords look for.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace fastctc {

// Nodes are numbered level by level, so the children of one lie side by side, in the order of their symbols.
struct TrieNode {
  int32_t symbol;       // on the edge into this node
  int32_t first_child;  // the last one's end is the next node's first_child
  uint64_t children;    // bit symbol % 64 of each child's symbol
};

FASTCTC_HOST_DEVICE static inline int32_t count_bits(uint64_t bits) {
  bits -= bits >> 1 & 0x5555555555555555u;
  bits = (bits & 0x3333333333333333u) + (bits >> 2 & 0x3333333333333333u);
  bits = (bits + (bits >> 4)) & 0x0f0f0f0f0f0f0f0fu;
  return static_cast<int32_t>(bits * 0x0101010101010101u >> 56);
}

// The child of a node along a symbol, or -1. `nodes` has one entry more than the trie.
FASTCTC_HOST_DEVICE static inline int32_t trie_child(const TrieNode* nodes, int32_t node, int32_t symbol) {
  const uint64_t children = nodes[node].children, bit = uint64_t{1} << (symbol & 63);
  if ((children & bit) == 0) return -1;
  int32_t low = nodes[node].first_child, high = nodes[node + 1].first_child;
  // where symbols are below 64, the bits before it count the children before it
  const int32_t guess = low + count_bits(children & (bit - 1));
  if (nodes[guess].symbol == symbol && guess < high) return guess;
  const int32_t end = high;
  while (low < high) {
    const int32_t middle = low + (high - low) / 2;
    if (nodes[middle].symbol < symbol) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low < end && nodes[low].symbol == symbol ? low : -1;
}

// A word of the lexicon, and the word of the n-gram model that scores it.
struct LexiconWord {
  int32_t index;  // in the lexicon
  int32_t ngram_word;
};

// Words by their spelling. Built by trie_tables.h.
struct LexiconView {
  const TrieNode* nodes = nullptr;      // null: no lexicon, every word is as good as any other
  const int32_t* first_word = nullptr;  // (nodes + 1): words[first_word[n] .. first_word[n + 1]) are spelled as node n
  const LexiconWord* words = nullptr;
};

// What hotwords know of a node: symbols that are the beginning of at least one phrase.
struct HotwordNode {
  int32_t fail;  // the longest proper suffix that is a node
  float held;    // bonus lent to phrases that have begun here, taken back when they do not go on
  float gain;    // bonus of all phrases that end here, for good
  float best;    // the largest bonus that any one symbol brings here
};

// One step of the automaton, suffixes included.
struct HotwordStep {
  float bonus;
  int32_t next;
};

// Aho & Corasick 1975, "Efficient string matching". Built by trie_tables.h.
struct HotwordView {
  const TrieNode* nodes = nullptr;  // null: no hotwords
  const HotwordNode* extra = nullptr;
  const HotwordStep* steps = nullptr;  // (nodes, symbols), where there are few of both; else null
  int32_t symbols = 0;                 // those of the phrases are below
  int32_t start = 0;                   // the node at the start of an utterance
  float largest_rise = 0;              // upper bound on the bonus of one symbol
};

// The bonus of one more symbol, and the node after it.
FASTCTC_HOST_DEVICE static inline float hotword_step(const HotwordView& h, int32_t symbol, int32_t* node) {
  const int32_t before = *node;
  if (h.steps != nullptr && symbol < h.symbols) {
    const HotwordStep step = h.steps[static_cast<int64_t>(before) * h.symbols + symbol];
    *node = step.next;
    return step.bonus;
  }
  int32_t next = trie_child(h.nodes, before, symbol);
  for (int32_t at = before; next < 0 && at != 0;) {
    at = h.extra[at].fail;
    next = trie_child(h.nodes, at, symbol);
  }
  if (next < 0) next = 0;
  *node = next;
  return h.extra[next].gain + h.extra[next].held - h.extra[before].held;
}

}  // namespace fastctc
