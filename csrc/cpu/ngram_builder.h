// Collects the n-grams of a model, order by order, and turns them into the tables of core/ngram.h.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/table_block.h"

namespace fastctc {

class NGramBuilder {
 public:
  enum class Added { yes, repeated, too_many };

  // Words are numbered in the order of their unigrams. `order` is the model's highest.
  explicit NGramBuilder(int order) : order_(order) { nodes_.push_back({}); }

  void add_unigram(float score, float backoff);

  // An n-gram of `n` >= 2 words with numbers of unigrams. The n-grams of an order come after those of lower ones.
  Added add(const int32_t* words, int n, float score, float backoff);

  int32_t words() const { return static_cast<int32_t>(unigram_scores_.size()); }

  // `start`, `end`, `unknown`: words; -1 for `start` and `end`: the model has none. The builder is empty afterwards.
  TableBlock finish(int32_t start, int32_t end, int32_t unknown);

 private:
  // A context. The root is node 0, the unigram of word w is node w + 1 where the order is above 1.
  struct Node {
    float backoff = 0;
    float best = 0;
    int32_t shorter = 0;
    int32_t parent = 0;  // without its last word
    int32_t word = -1;   // its last word
    int32_t length = 0;
    bool extended = false;  // some n-gram begins with it
  };

  // Arcs by context and word, in a hash table that grows by doubling.
  class ArcTable {
   public:
    ArcTable() : slots_(64, NGramArc{-1, 0, 0, 0}) {}
    NGramArc* find(int32_t node, int32_t word);
    void insert(const NGramArc& arc);  // which is not there yet
    std::size_t size() const { return size_; }
    std::vector<NGramArc>& slots() { return slots_; }

   private:
    void place(const NGramArc& arc);
    std::vector<NGramArc> slots_;
    std::size_t size_ = 0;
  };

  bool has_node(int n) const { return n < order_; }
  int32_t context(const int32_t* words, int n);
  int32_t add_node(int32_t parent, int32_t word, int length, float backoff);
  int32_t longest_suffix(int32_t context, int32_t word);
  float backed_off_score(int32_t context, int32_t word);
  void link_suffixes();
  void resolve_arcs();
  void bypass_unextended();
  void find_best();
  int32_t settle(int32_t node) const;

  int order_;
  std::vector<float> unigram_scores_;
  std::vector<Node> nodes_;
  ArcTable arcs_;
  std::vector<int32_t> by_length_;   // nodes, shortest first
  std::vector<int32_t> last_words_;  // the context found last, which neighbours in a file share
  int32_t last_context_ = 0;
};

}  // namespace fastctc
