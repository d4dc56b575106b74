// The prefixes of a beam as a tree of nodes, merged by exact (parent, token) keys; what no prefix in the beam descends
// from any more is collected.
#pragma once

#include "beam_search_kernel.h"
#include "simd/vec.h"

namespace {

using fastctc::BeamTrie;

constexpr int32_t kNoNode = 0;
constexpr int32_t kEmptyPrefix = 1;

FASTCTC_INLINE void set_node(BeamTrie& trie, int32_t node, int32_t parent, int32_t token, int32_t depth) {
  trie.parent[node] = parent;
  trie.token[node] = token;
  trie.depth[node] = depth;
  trie.first_child[node] = kNoNode;
  trie.next_sibling[node] = kNoNode;
  trie.slot[node] = -1;
}

FASTCTC_INLINE void start_trie(BeamTrie& trie) {
  set_node(trie, kNoNode, kNoNode, -1, -1);
  set_node(trie, kEmptyPrefix, kNoNode, -1, 0);
  trie.count = 2;
}

FASTCTC_INLINE void hang(BeamTrie& trie, int32_t node) {
  const int32_t parent = trie.parent[node];
  trie.next_sibling[node] = trie.first_child[parent];
  trie.first_child[parent] = node;
}

// The node of parent + token, which may have left the beam before and been kept for its descendants.
FASTCTC_INLINE int32_t child_node(BeamTrie& trie, int32_t parent, int32_t token) {
  for (int32_t node = trie.first_child[parent]; node != kNoNode; node = trie.next_sibling[node])
    if (trie.token[node] == token) return node;
  const int32_t node = (int32_t)trie.count++;
  set_node(trie, node, parent, token, trie.depth[parent] + 1);
  hang(trie, node);
  return node;
}

// Lets go of nodes without a descendant in the beam. moved[old] is the new index of what stays.
FASTCTC_INLINE void collect(BeamTrie& trie) {
  int32_t* moved = trie.moved;
  for (int64_t i = 0; i < trie.count; ++i) moved[i] = trie.slot[i] >= 0;
  moved[kNoNode] = moved[kEmptyPrefix] = 1;
  for (int64_t i = trie.count - 1; i > kEmptyPrefix; --i)
    if (moved[i]) moved[trie.parent[i]] = 1;
  int32_t next = 0;
  for (int64_t i = 0; i < trie.count; ++i) {
    if (!moved[i]) continue;
    const int32_t slot = trie.slot[i], node = next++;
    set_node(trie, node, moved[trie.parent[i]], trie.token[i], trie.depth[i]);
    trie.slot[node] = slot;
    moved[i] = node;
    if (node > kEmptyPrefix) hang(trie, node);
  }
  trie.count = next;
}

// A prefix given as a node and, unless -1, one more token.
struct PrefixOf {
  int32_t node, token;
};

// The rule for equal scores: the shorter prefix first, then the one whose tokens come first in lexicographic order.
FASTCTC_INLINE bool comes_first(const BeamTrie& trie, PrefixOf a, PrefixOf b) {
  const int32_t length_a = trie.depth[a.node] + (a.token >= 0), length_b = trie.depth[b.node] + (b.token >= 0);
  if (length_a != length_b) return length_a < length_b;
  int32_t token_a = 0, token_b = 0;
  const auto step = [&](PrefixOf& p) {
    const int32_t token = p.token >= 0 ? p.token : trie.token[p.node];
    if (p.token < 0) p.node = trie.parent[p.node];
    p.token = -1;
    return token;
  };
  // from the last token back to where the two part: the difference found last is the first in reading order
  while (a.node != b.node || a.token >= 0 || b.token >= 0) {
    const int32_t x = step(a), y = step(b);
    if (x != y) token_a = x, token_b = y;
  }
  return token_a < token_b;
}

}  // namespace
