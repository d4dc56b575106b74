// What tokens add to a score, in rows of all classes.
#include <limits>

#include "cpu/beam_search_kernel.h"
#include "cpu/table_block.h"
#include "fastctc/language_model.h"

namespace fastctc {
namespace {

constexpr int64_t kFewestColumns = 16;  // a vector of any target
constexpr int64_t kMostBytes = int64_t{32} << 20;

int64_t columns_for(int64_t C) {
  int64_t columns = kFewestColumns;
  while (columns < C) columns *= 2;
  return columns;
}

// A token's bonus is that of the model and that of its one symbol, whatever was before in the open word.
bool are_sums(const FusionView& f) { return f.one_symbol && f.lexicon.nodes == nullptr && f.unit != NGramUnit::word; }

bool is_boundary(const FusionView& f, int64_t c) {
  return f.first_symbol[c] < f.first_symbol[c + 1] && f.symbols[f.first_symbol[c]] == kBoundarySymbol;
}

float ngram_bonus(const FusionView& f, int32_t node, int64_t c) {
  int32_t next;
  return f.ngram_weight * ngram_score(f.ngram, node, f.token_words[c], &next);
}

// Within a word.
float symbol_bonus(const FusionView& f, int32_t node, int64_t c) {
  if (f.first_symbol[c] == f.first_symbol[c + 1]) return 0;
  const float words = is_boundary(f, c) ? f.word_score : 0.0f;
  return f.hotwords.nodes != nullptr ? words + hotword_step(f.hotwords, f.symbols[f.first_symbol[c]], &node) : words;
}

template <typename Bonus>
void fill_rows(TableBlock& block, int64_t at, int32_t rows, int32_t columns, Bonus bonus) {
  float* out = table_array<float>(block, at);
  for (int32_t node = 0; node < rows; ++node)
    for (int64_t c = 0; c < columns; ++c) *out++ = bonus(node, c);
}

}  // namespace

TableBlock make_bonus_rows(const FusionParams& p, int64_t blank) {
  if (p.C > BonusRows::kMostClasses) return {};
  const FusionView f = make_fusion_view(p);
  if (!are_sums(f)) return {};
  BonusRowsHeader header{};
  header.kind = TableKind::bonus_rows;
  header.columns = static_cast<int32_t>(columns_for(p.C));
  header.ngram_rows = header.symbol_rows = 1;
  if (f.unit == NGramUnit::token) {
    header.ngram_rows = table_header<NGramHeader>(p.ngram.host, TableKind::ngram, "the n-gram model").nodes;
  }
  if (f.hotwords.nodes != nullptr) {
    header.symbol_rows = table_header<HotwordsHeader>(p.hotwords.host, TableKind::hotwords, "the hotwords").nodes;
  }
  const int64_t rows = int64_t{header.ngram_rows} + header.symbol_rows;
  if (rows * header.columns * int64_t{sizeof(float)} > kMostBytes) return {};
  for (int64_t c = 0; c < p.C; ++c) header.boundaries += is_boundary(f, c);

  TableLayout layout(sizeof header);
  header.boundaries_at = layout.array<int32_t>(static_cast<std::size_t>(header.boundaries));
  header.ngram_at = layout.array<float>(static_cast<std::size_t>(header.ngram_rows * int64_t{header.columns}));
  header.symbols_at = layout.array<float>(static_cast<std::size_t>(header.symbol_rows * int64_t{header.columns}));
  TableBlock block = layout.block(header);
  int32_t* boundary = table_array<int32_t>(block, header.boundaries_at);
  for (int32_t c = 0; c < p.C; ++c)
    if (is_boundary(f, c)) *boundary++ = c;
  const float never = -std::numeric_limits<float>::infinity();
  fill_rows(block, header.ngram_at, header.ngram_rows, header.columns, [&](int32_t node, int64_t c) {
    if (c >= p.C || c == blank) return never;
    return f.unit == NGramUnit::token ? ngram_bonus(f, node, c) : 0.0f;
  });
  fill_rows(block, header.symbols_at, header.symbol_rows, header.columns,
            [&](int32_t node, int64_t c) { return c < p.C ? symbol_bonus(f, node, c) : 0.0f; });
  return block;
}

}  // namespace fastctc
