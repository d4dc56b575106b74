// Prefixes: those of a beam in their slots, and all that there have been as nodes of a tree.
#pragma once

#include "beam_search_layout.cuh"

namespace fastctc {
namespace cuda {

// A prefix given as a node and, unless -1, one more token.
struct PrefixOf {
  int node, token, depth;
};

// The nodes of one utterance.
struct NodeTable {
  NodeKey* keys;
  unsigned size;  // also the node of the empty prefix, which has no key

  static __device__ __forceinline__ int parent(NodeKey key) { return int(key >> 32); }
  static __device__ __forceinline__ int token(NodeKey key) { return int(key & 0xffffffffu); }

  // The node of parent + token, which may have left the beam before. The table is never more than half full.
  __device__ int child(int parent, int token) const {
    const NodeKey key = NodeKey(unsigned(parent)) << 32 | unsigned(token);
    NodeKey hash = (key ^ key >> 32) * 0xd6e8feb86659fd93ull;
    hash = (hash ^ hash >> 32) * 0xd6e8feb86659fd93ull;
    unsigned place = unsigned(((hash >> 32) * size) >> 32);
    for (;; place = place + 1 == size ? 0 : place + 1) {
      const NodeKey seen = atomicCAS(keys + place, kFreeNode, key);
      if (seen == kFreeNode || seen == key) return int(place);
    }
  }

  // Equal scores: the shorter prefix first, then the one whose tokens come first in lexicographic order.
  __device__ bool comes_first(PrefixOf a, PrefixOf b) const {
    if (a.depth != b.depth) return a.depth < b.depth;
    int token_a = 0, token_b = 0;
    // from the last token back to where the two part: the difference found last is the first in reading order
    while (a.node != b.node || a.token >= 0 || b.token >= 0) {
      const int x = step(&a), y = step(&b);
      if (x != y) token_a = x, token_b = y;
    }
    return token_a < token_b;
  }

 private:
  __device__ int step(PrefixOf* p) const {
    int token = p->token;
    p->token = -1;
    if (token >= 0) return token;
    const NodeKey key = __ldcg(keys + p->node);
    p->node = parent(key);
    return this->token(key);
  }
};

constexpr int beam_width(bool one_warp) { return one_warp ? 32 : int(kBeamSearchCudaMostBeams); }

// What the team's threads share.
template <class Scalar, bool fused, int width>
struct BeamShared {
  static constexpr int kRoom = width > 32 ? 4 * width : 8 * width;

  // Of each slot.
  double final_score[width];
  double bonus[fused ? width : 1];    // of all extensions
  Scalar total[width];                // masses of the frame before
  Scalar blank[width];                // of that, the paths that end in blank
  Scalar outlook[fused ? width : 1];  // e^bonus, at most, of the next extension
  FusionState state[fused ? width : 1];
  int last[width];  // last token
  int node[width];  // -1: the slot is free
  int depth[width];
  int first_child[width];  // slots whose parent is in this one, as a list
  int next_child[width];

  // Of new prefixes.
  Scalar score[kRoom];
  int from[kRoom];     // place of its token * width + slot of its parent
  int chosen[width];   // those that enter, and then their slots
  int entered[width];  // and their nodes

  int tied[width + kRoom];  // candidates: slots, and from `width` on new prefixes
};

}  // namespace cuda
}  // namespace fastctc
