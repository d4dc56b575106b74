#include "cpu/ngram_builder.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

namespace fastctc {
namespace {

constexpr int32_t kUnresolved = -1;
constexpr int64_t kMost = std::numeric_limits<int32_t>::max() - 1;

}  // namespace

NGramArc* NGramBuilder::ArcTable::find(int32_t node, int32_t word) {
  const auto count = static_cast<uint32_t>(slots_.size());
  for (uint32_t at = ngram_slot(node, word, count);; at = at + 1 == count ? 0 : at + 1) {
    if (slots_[at].node == node && slots_[at].word == word) return &slots_[at];
    if (slots_[at].node < 0) return nullptr;
  }
}

void NGramBuilder::ArcTable::insert(const NGramArc& arc) {
  if (3 * (size_ + 1) > 2 * slots_.size()) {
    std::vector<NGramArc> old(2 * slots_.size(), NGramArc{-1, 0, 0, 0});
    old.swap(slots_);
    for (const NGramArc& moved : old) {
      if (moved.node >= 0) place(moved);
    }
  }
  place(arc);
  ++size_;
}

void NGramBuilder::ArcTable::place(const NGramArc& arc) {
  const auto count = static_cast<uint32_t>(slots_.size());
  uint32_t at = ngram_slot(arc.node, arc.word, count);
  while (slots_[at].node >= 0) at = at + 1 == count ? 0 : at + 1;
  slots_[at] = arc;
}

void NGramBuilder::add_unigram(float score, float backoff) {
  if (has_node(1)) add_node(0, words(), 1, backoff);
  unigram_scores_.push_back(score);
}

int32_t NGramBuilder::add_node(int32_t parent, int32_t word, int length, float backoff) {
  Node node;
  node.backoff = backoff;
  node.parent = parent;
  node.word = word;
  node.length = length;
  nodes_.push_back(node);
  return static_cast<int32_t>(nodes_.size()) - 1;
}

// The node of `n` words. Pruned models may list "a b c" without "a b"; such contexts are made here, with a score to be
// worked out from shorter ones and no back-off.
int32_t NGramBuilder::context(const int32_t* words, int n) {
  if (static_cast<int>(last_words_.size()) == n && std::equal(words, words + n, last_words_.begin())) {
    return last_context_;
  }
  int32_t node = words[0] + 1;
  for (int i = 1; i < n; ++i) {
    const NGramArc* arc = arcs_.find(node, words[i]);
    int32_t next;
    if (arc != nullptr) {
      next = arc->next;
    } else {
      next = add_node(node, words[i], i + 1, 0);
      nodes_[node].extended = true;
      arcs_.insert({node, words[i], std::numeric_limits<float>::quiet_NaN(), next});
    }
    node = next;
  }
  last_words_.assign(words, words + n);
  last_context_ = node;
  return node;
}

NGramBuilder::Added NGramBuilder::add(const int32_t* words, int n, float score, float backoff) {
  if (static_cast<int64_t>(nodes_.size()) + n > kMost || static_cast<int64_t>(arcs_.size()) + n > kMost / 2) {
    return Added::too_many;
  }
  const int32_t node = context(words, n - 1);
  const int32_t word = words[n - 1];
  if (arcs_.find(node, word) != nullptr) return Added::repeated;
  nodes_[node].extended = true;
  const int32_t next = has_node(n) ? add_node(node, word, n, backoff) : kUnresolved;
  arcs_.insert({node, word, score, next});
  return Added::yes;
}

// The longest suffix of the context, then the word, that is a context; the context itself is not tried.
int32_t NGramBuilder::longest_suffix(int32_t context, int32_t word) {
  for (int32_t at = context; at != 0;) {
    at = nodes_[at].shorter;
    if (at == 0) break;
    const NGramArc* arc = arcs_.find(at, word);
    if (arc != nullptr) return arc->next;  // of a lower order than the highest, so it has a node
  }
  return has_node(1) && context != 0 ? word + 1 : 0;
}

float NGramBuilder::backed_off_score(int32_t context, int32_t word) {
  double score = 0;
  for (int32_t at = context; at != 0;) {
    score += nodes_[at].backoff;
    at = nodes_[at].shorter;
    const NGramArc* arc = at == 0 ? nullptr : arcs_.find(at, word);
    if (arc != nullptr) return static_cast<float>(score + arc->score);
  }
  return static_cast<float>(score + unigram_scores_[word]);
}

void NGramBuilder::link_suffixes() {
  by_length_.resize(nodes_.size());
  for (std::size_t i = 0; i < nodes_.size(); ++i) by_length_[i] = static_cast<int32_t>(i);
  std::stable_sort(by_length_.begin(), by_length_.end(),
                   [&](int32_t a, int32_t b) { return nodes_[a].length < nodes_[b].length; });
  for (const int32_t index : by_length_) {
    Node& node = nodes_[index];
    if (node.length == 0) continue;
    node.shorter = longest_suffix(node.parent, node.word);
    if (node.length == 1) continue;
    NGramArc* arc = arcs_.find(node.parent, node.word);
    if (std::isnan(arc->score)) arc->score = backed_off_score(node.parent, node.word);
  }
}

void NGramBuilder::resolve_arcs() {
  for (NGramArc& arc : arcs_.slots()) {
    if (arc.node >= 0 && arc.next == kUnresolved) arc.next = longest_suffix(arc.node, arc.word);
  }
}

// Contexts that no n-gram begins with are never asked: their back-off goes to those that back off to them.
void NGramBuilder::bypass_unextended() {
  for (const int32_t index : by_length_) {
    Node& node = nodes_[index];
    const Node& shorter = nodes_[node.shorter];
    if (node.shorter == 0 || shorter.extended) continue;
    node.backoff += shorter.backoff;
    node.shorter = shorter.shorter;
  }
}

// The context that scores every word as `node` does.
int32_t NGramBuilder::settle(int32_t node) const {
  while (node != 0 && !nodes_[node].extended && nodes_[node].backoff == 0) node = nodes_[node].shorter;
  return node;
}

void NGramBuilder::find_best() {
  for (Node& node : nodes_) node.best = -std::numeric_limits<float>::infinity();
  nodes_[0].best = *std::max_element(unigram_scores_.begin(), unigram_scores_.end());
  for (const NGramArc& arc : arcs_.slots()) {
    if (arc.node >= 0) nodes_[arc.node].best = std::max(nodes_[arc.node].best, arc.score);
  }
  for (const int32_t index : by_length_) {
    Node& node = nodes_[index];
    if (index != 0) node.best = std::max(node.best, node.backoff + nodes_[node.shorter].best);
  }
}

TableBlock NGramBuilder::finish(int32_t start, int32_t end, int32_t unknown) {
  link_suffixes();
  resolve_arcs();
  bypass_unextended();
  find_best();

  TableLayout layout(sizeof(NGramHeader));
  NGramHeader header{};
  header.kind = TableKind::ngram;
  header.slots = static_cast<uint32_t>(arcs_.size() + arcs_.size() / 2 + 1);
  header.nodes_at = layout.array<NGramNode>(nodes_.size());
  header.arcs_at = layout.array<NGramArc>(header.slots);
  header.unigrams_at = layout.array<NGramUnigram>(unigram_scores_.size());
  if (has_steps<NGramStep>(static_cast<int64_t>(nodes_.size()), words())) {
    header.steps_at = layout.array<NGramStep>(nodes_.size() * unigram_scores_.size());
  }
  header.nodes = static_cast<int32_t>(nodes_.size());
  header.words = words();
  header.unknown = unknown;
  header.end = end;
  header.start = start >= 0 && has_node(1) ? settle(start + 1) : 0;
  header.best = -std::numeric_limits<float>::infinity();
  for (const Node& node : nodes_) header.best = std::max(header.best, node.best);

  TableBlock block = layout.block(header);
  NGramNode* nodes = table_array<NGramNode>(block, header.nodes_at);
  for (std::size_t i = 0; i < nodes_.size(); ++i) {
    nodes[i] = {nodes_[i].backoff, nodes_[i].shorter, nodes_[i].best};
  }
  NGramUnigram* unigrams = table_array<NGramUnigram>(block, header.unigrams_at);
  for (int32_t word = 0; word < header.words; ++word) {
    unigrams[word] = {unigram_scores_[word], has_node(1) ? settle(word + 1) : 0};
  }
  NGramArc* arcs = table_array<NGramArc>(block, header.arcs_at);
  std::fill(arcs, arcs + header.slots, NGramArc{-1, 0, 0, 0});
  for (const NGramArc& arc : arcs_.slots()) {
    if (arc.node < 0) continue;
    uint32_t at = ngram_slot(arc.node, arc.word, header.slots);
    while (arcs[at].node >= 0) at = at + 1 == header.slots ? 0 : at + 1;
    arcs[at] = {arc.node, arc.word, arc.score, settle(arc.next)};
  }
  if (header.steps_at > 0) {
    NGramView view;
    view.nodes = nodes;
    view.arcs = arcs;
    view.unigrams = unigrams;
    view.slots = header.slots;
    NGramStep* step = table_array<NGramStep>(block, header.steps_at);
    for (int32_t node = 0; node < static_cast<int32_t>(nodes_.size()); ++node) {
      for (int32_t word = 0; word < header.words; ++word, ++step)
        step->score = ngram_score(view, node, word, &step->next);
    }
  }
  *this = NGramBuilder(order_);
  return block;
}

}  // namespace fastctc
