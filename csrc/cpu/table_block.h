// Blocks of bytes with a header in front and arrays behind, found by offsets.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include "fastctc/language_model.h"

namespace fastctc {

enum class TableKind : uint32_t {
  ngram = 0x6d676e33,
  lexicon = 0x78656c32,
  hotwords = 0x746f6834,
  bonus_rows = 0x776f7231,
};

struct NGramHeader {
  TableKind kind;
  uint32_t slots;
  int64_t nodes_at, arcs_at, unigrams_at;
  int64_t steps_at;  // 0: none
  int32_t nodes, words, unknown, end, start;
  float best;
};

struct LexiconHeader {
  TableKind kind;
  int64_t nodes_at, first_word_at, words_at;
};

struct HotwordsHeader {
  TableKind kind;
  int32_t start;
  int64_t nodes_at, extra_at;
  int64_t steps_at;  // 0: none
  int32_t nodes, symbols;
  float largest_rise;
  float most_held, most_gain[2];  // the latter of nodes along a boundary, and along other symbols
};

// Rows of `columns` bonuses, a class each: (ngram_rows) by the n-gram model's node and (symbol_rows) by the hotwords'.
struct BonusRowsHeader {
  TableKind kind;
  int32_t columns;
  int32_t ngram_rows, symbol_rows;  // 1 of what there is not
  int32_t boundaries;               // classes of the boundary between words, which are listed
  int64_t boundaries_at, ngram_at, symbols_at;
};

// Automata of few states and symbols, as of a model of characters, have a table of all steps.
template <typename Step>
bool has_steps(int64_t states, int64_t symbols) {
  constexpr int64_t kMostSymbols = 128;
  constexpr int64_t kMostBytes = int64_t{32} << 20;
  return symbols <= kMostSymbols && states * symbols * static_cast<int64_t>(sizeof(Step)) <= kMostBytes;
}

// Lays arrays out one after the other; the block is then allocated once.
class TableLayout {
 public:
  explicit TableLayout(std::size_t header_bytes) : bytes_(round_up(header_bytes)) {}

  template <typename T>
  int64_t array(std::size_t count) {
    const std::size_t at = bytes_;
    bytes_ = round_up(bytes_ + count * sizeof(T));
    return static_cast<int64_t>(at);
  }

  template <typename Header>
  TableBlock block(const Header& header) const {
    TableBlock block(bytes_);
    std::memcpy(block.data(), &header, sizeof header);
    return block;
  }

 private:
  static std::size_t round_up(std::size_t bytes) { return (bytes + 15) / 16 * 16; }
  std::size_t bytes_;
};

template <typename T>
T* table_array(TableBlock& block, int64_t at) {
  return reinterpret_cast<T*>(block.data() + at);
}

template <typename T>
const T* table_array(const void* block, int64_t at) {
  return reinterpret_cast<const T*>(static_cast<const char*>(block) + at);
}

template <typename Header>
Header table_header(const void* block, TableKind kind, const char* name) {
  Header header;
  std::memcpy(&header, block, sizeof header);
  if (header.kind != kind) throw std::invalid_argument(std::string(name) + " is not a table that this version made");
  return header;
}

}  // namespace fastctc
