// Tables of lexicons and hotwords.
#include <algorithm>
#include <limits>
#include <numeric>

#include "cpu/table_block.h"
#include "fastctc/language_model.h"

namespace fastctc {
namespace {

// Sequences of symbols, ordered; those with the same beginning are neighbours.
struct Sequences {
  const int32_t* symbols;
  const int64_t* first;
  std::vector<int64_t> order;

  Sequences(const int32_t* all, const int64_t* starts, int64_t count)
      : symbols(all), first(starts), order(static_cast<std::size_t>(count)) {
    std::iota(order.begin(), order.end(), int64_t{0});
    std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      const int64_t longest = std::min(length(a), length(b));
      for (int64_t i = 0; i < longest; ++i) {
        if (at(a, i) != at(b, i)) return at(a, i) < at(b, i);
      }
      return length(a) != length(b) ? length(a) < length(b) : a < b;
    });
  }

  int64_t length(int64_t sequence) const { return first[sequence + 1] - first[sequence]; }
  int32_t at(int64_t sequence, int64_t i) const { return symbols[first[sequence] + i]; }
};

// One node while the trie is built: the sequences order[begin, end) go through it, order[begin, ends) end at it.
struct Range {
  int64_t begin, ends, end;
  int32_t depth, parent;
};

struct Trie {
  std::vector<TrieNode> nodes;  // and the one behind the last
  std::vector<Range> ranges;    // without it
};

Trie build_trie(const Sequences& sequences) {
  Trie trie;
  trie.nodes.push_back({-1, 1, 0});
  trie.ranges.push_back({0, 0, static_cast<int64_t>(sequences.order.size()), 0, 0});
  for (std::size_t node = 0; node < trie.ranges.size(); ++node) {
    Range range = trie.ranges[node];
    trie.nodes[node].first_child = static_cast<int32_t>(trie.nodes.size());
    int64_t i = range.begin;
    while (i < range.end && sequences.length(sequences.order[i]) == range.depth) ++i;
    trie.ranges[node].ends = i;
    while (i < range.end) {
      const int32_t symbol = sequences.at(sequences.order[i], range.depth);
      const int64_t begin = i;
      while (i < range.end && sequences.at(sequences.order[i], range.depth) == symbol) ++i;
      if (trie.nodes.size() >= std::numeric_limits<int32_t>::max()) {
        throw std::invalid_argument("the words or phrases need 2^31 - 1 nodes or more");
      }
      trie.nodes.push_back({symbol, 0, 0});
      trie.nodes[node].children |= uint64_t{1} << (symbol & 63);
      trie.ranges.push_back({begin, begin, i, range.depth + 1, static_cast<int32_t>(node)});
    }
  }
  trie.nodes.push_back({-1, static_cast<int32_t>(trie.nodes.size()), 0});
  return trie;
}

// Failure links, and bonuses of phrases that are suffixes of others. Nodes come after all shorter ones.
void link_suffixes(const Trie& trie, HotwordNode* extra) {
  for (std::size_t node = 1; node < trie.ranges.size(); ++node) {
    int32_t fail = 0;
    for (int32_t at = trie.ranges[node].parent; at != 0;) {
      at = extra[at].fail;
      const int32_t child = trie_child(trie.nodes.data(), at, trie.nodes[node].symbol);
      if (child >= 0) {
        fail = child;
        break;
      }
    }
    extra[node].fail = fail;
    extra[node].gain += extra[fail].gain;
    extra[node].held = std::max(extra[node].held, extra[fail].held);
  }
}

// The largest parts of the bonuses that all nodes have.
void find_most(const Trie& trie, const HotwordNode* extra, HotwordsHeader* header) {
  for (std::size_t node = 1; node < trie.ranges.size(); ++node) {
    float& gain = header->most_gain[trie.nodes[node].symbol == kBoundarySymbol ? 0 : 1];
    gain = std::max(gain, extra[node].gain);
    header->most_held = std::max(header->most_held, extra[node].held);
  }
}

// Where a symbol does not go on from a node, it leads where it leads from the node's longest suffix.
void find_steps(const Trie& trie, const HotwordNode* extra, int32_t symbols, HotwordStep* steps) {
  const auto row = [&](std::size_t node) { return steps + static_cast<int64_t>(node) * symbols; };
  std::fill(row(0), row(1), HotwordStep{0, 0});
  for (std::size_t node = 0; node < trie.ranges.size(); ++node) {
    if (node > 0) std::copy_n(row(static_cast<std::size_t>(extra[node].fail)), symbols, row(node));
    for (int32_t child = trie.nodes[node].first_child; child < trie.nodes[node + 1].first_child; ++child) {
      row(node)[trie.nodes[static_cast<std::size_t>(child)].symbol].next = child;
    }
    for (HotwordStep* step = row(node); step < row(node + 1); ++step) {
      const HotwordNode& next = extra[step->next];
      step->bonus = next.gain + next.held - extra[node].held;
    }
  }
}

// The largest bonus of one symbol, at each node; returns that of all nodes. A symbol that does not go on from a node
// goes on from a suffix of it, at the price of what the suffix does not hold.
float find_best(const Trie& trie, HotwordNode* extra) {
  const std::size_t count = trie.ranges.size();
  extra[0].best = 0;
  for (std::size_t node = 1; node < count; ++node) extra[node].best = -std::numeric_limits<float>::infinity();
  for (std::size_t node = 1; node < count; ++node) {
    HotwordNode& parent = extra[trie.ranges[node].parent];
    parent.best = std::max(parent.best, extra[node].gain + extra[node].held - parent.held);
  }
  for (std::size_t node = 1; node < count; ++node) {
    const HotwordNode& fail = extra[extra[node].fail];
    extra[node].best = std::max(extra[node].best, fail.best + fail.held - extra[node].held);
  }
  float largest = 0;
  for (std::size_t node = 0; node < count; ++node) largest = std::max(largest, extra[node].best);
  return largest;
}

}  // namespace

TableBlock make_lexicon(const int32_t* symbols, const int64_t* first, int64_t count, const int32_t* indices,
                        const int32_t* ngram_words) {
  const Sequences sequences(symbols, first, count);
  const Trie trie = build_trie(sequences);
  std::vector<int32_t> first_word{0, 0};  // the root has no words
  std::vector<LexiconWord> words;
  for (std::size_t node = 1; node < trie.ranges.size(); ++node) {
    const Range& range = trie.ranges[node];
    for (int64_t i = range.begin; i < range.ends; ++i) {
      const int64_t spelling = sequences.order[i];
      const bool first_of_node = static_cast<int32_t>(words.size()) == first_word[node];
      if (first_of_node || words.back().index != indices[spelling]) {
        words.push_back({indices[spelling], ngram_words[spelling]});
      }
    }
    first_word.push_back(static_cast<int32_t>(words.size()));
  }

  TableLayout layout(sizeof(LexiconHeader));
  LexiconHeader header{};
  header.kind = TableKind::lexicon;
  header.nodes_at = layout.array<TrieNode>(trie.nodes.size());
  header.first_word_at = layout.array<int32_t>(first_word.size());
  header.words_at = layout.array<LexiconWord>(words.size());
  TableBlock block = layout.block(header);
  std::copy(trie.nodes.begin(), trie.nodes.end(), table_array<TrieNode>(block, header.nodes_at));
  std::copy(first_word.begin(), first_word.end(), table_array<int32_t>(block, header.first_word_at));
  std::copy(words.begin(), words.end(), table_array<LexiconWord>(block, header.words_at));
  return block;
}

TableBlock make_hotwords(const int32_t* symbols, const int64_t* first, int64_t count, const float* bonuses,
                         bool after_boundary) {
  const Sequences sequences(symbols, first, count);
  const Trie trie = build_trie(sequences);
  TableLayout layout(sizeof(HotwordsHeader));
  HotwordsHeader header{};
  header.kind = TableKind::hotwords;
  header.nodes_at = layout.array<TrieNode>(trie.nodes.size());
  header.extra_at = layout.array<HotwordNode>(trie.ranges.size());
  for (const TrieNode& node : trie.nodes) header.symbols = std::max(header.symbols, node.symbol + 1);
  const auto states = static_cast<int64_t>(trie.ranges.size());
  header.nodes = static_cast<int32_t>(states);
  if (has_steps<HotwordStep>(states, header.symbols)) {
    header.steps_at = layout.array<HotwordStep>(static_cast<std::size_t>(states * header.symbols));
  }
  TableBlock block = layout.block(header);
  std::copy(trie.nodes.begin(), trie.nodes.end(), table_array<TrieNode>(block, header.nodes_at));
  HotwordNode* extra = table_array<HotwordNode>(block, header.extra_at);

  // A phrase lends each of its symbols, boundaries apart, an equal share of its bonus. Its last node lends nothing on
  // its own account: the phrase has got what it is due.
  for (std::size_t node = 1; node < trie.ranges.size(); ++node) {
    const Range& range = trie.ranges[node];
    const auto bonus_of = [&](int64_t i) { return bonuses[sequences.order[i]]; };
    for (int64_t i = range.begin; i < range.ends; ++i) {
      extra[node].gain = i == range.begin ? bonus_of(i) : std::max(extra[node].gain, bonus_of(i));
    }
    for (int64_t i = range.ends; i < range.end; ++i) {
      const int64_t phrase = sequences.order[i];
      const int32_t* spelled = symbols + first[phrase];
      const auto counted = [](int32_t symbol) { return symbol != kBoundarySymbol; };
      const auto done = std::count_if(spelled, spelled + range.depth, counted);
      const auto all = std::count_if(spelled, symbols + first[phrase + 1], counted);
      const double share = static_cast<double>(done) / static_cast<double>(all);
      extra[node].held = std::max(extra[node].held, static_cast<float>(bonus_of(i) * share));
    }
  }
  link_suffixes(trie, extra);
  find_most(trie, extra, &header);
  if (after_boundary) header.start = std::max(0, trie_child(trie.nodes.data(), 0, kBoundarySymbol));
  header.largest_rise = find_best(trie, extra);
  if (header.steps_at > 0) {
    find_steps(trie, extra, header.symbols, table_array<HotwordStep>(block, header.steps_at));
  }
  std::memcpy(block.data(), &header, sizeof header);
  return block;
}

}  // namespace fastctc
