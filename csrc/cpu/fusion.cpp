// Puts the tables of a decoder together.
#include <algorithm>
#include <cmath>

#include "cpu/table_block.h"
#include "fastctc/language_model.h"

namespace fastctc {
namespace {

NGramView ngram_view(const TableAddress& table) {
  NGramView view;
  if (table.host == nullptr) return view;
  const auto header = table_header<NGramHeader>(table.host, TableKind::ngram, "the n-gram model");
  view.nodes = table_array<NGramNode>(table.data, header.nodes_at);
  view.arcs = table_array<NGramArc>(table.data, header.arcs_at);
  view.unigrams = table_array<NGramUnigram>(table.data, header.unigrams_at);
  if (header.steps_at > 0) view.steps = table_array<NGramStep>(table.data, header.steps_at);
  view.slots = header.slots;
  view.words = header.words;
  view.unknown = header.unknown;
  view.end = header.end;
  view.start = header.start;
  view.best = header.best;
  return view;
}

LexiconView lexicon_view(const TableAddress& table) {
  LexiconView view;
  if (table.host == nullptr) return view;
  const auto header = table_header<LexiconHeader>(table.host, TableKind::lexicon, "the lexicon");
  view.nodes = table_array<TrieNode>(table.data, header.nodes_at);
  view.first_word = table_array<int32_t>(table.data, header.first_word_at);
  view.words = table_array<LexiconWord>(table.data, header.words_at);
  return view;
}

HotwordView hotword_view(const TableAddress& table) {
  HotwordView view;
  if (table.host == nullptr) return view;
  const auto header = table_header<HotwordsHeader>(table.host, TableKind::hotwords, "the hotwords");
  view.nodes = table_array<TrieNode>(table.data, header.nodes_at);
  view.extra = table_array<HotwordNode>(table.data, header.extra_at);
  if (header.steps_at > 0) view.steps = table_array<HotwordStep>(table.data, header.steps_at);
  view.symbols = header.symbols;
  view.start = header.start;
  view.largest_rise = header.largest_rise;
  return view;
}

// No token adds more than this through hotwords: its symbols one by one, or what is lent and taken back at all of them
// cancelled but for the last, so that besides it only whole phrases count.
double most_of_hotwords(const HotwordsHeader& header, int64_t symbols, int64_t boundaries) {
  const double phrases = double(boundaries) * header.most_gain[0] + double(symbols - boundaries) * header.most_gain[1];
  return std::min(double(symbols) * header.largest_rise, header.most_held + phrases);
}

bool has_words(const LexiconView& lexicon, int32_t node) {
  return lexicon.nodes != nullptr && node > kEmptyWord && lexicon.first_word[node] < lexicon.first_word[node + 1];
}

}  // namespace

FusionView make_fusion_view(const FusionParams& p) {
  FusionView f;
  f.ngram = ngram_view(p.ngram);
  f.lexicon = lexicon_view(p.lexicon);
  f.hotwords = hotword_view(p.hotwords);
  f.unit = p.unit;
  f.ngram_weight = p.ngram_weight;
  f.word_score = p.word_score;
  f.unknown_score = p.unknown_score;

  const int32_t* first_symbol = static_cast<const int32_t*>(p.tokens.host);
  const int32_t* symbols = first_symbol + p.C + 1;
  f.first_symbol = static_cast<const int32_t*>(p.tokens.data);
  f.symbols = f.first_symbol + p.C + 1;
  if (p.unit == NGramUnit::token) f.token_words = f.symbols + first_symbol[p.C];
  f.has_boundary = std::count(symbols, symbols + first_symbol[p.C], kBoundarySymbol) > 0;

  if (f.has_boundary) {
    const float unknown = p.unit == NGramUnit::word || f.lexicon.nodes != nullptr ? p.unknown_score : 0.0f;
    const float scored = p.unit == NGramUnit::word ? p.ngram_weight * f.ngram.best : 0.0f;
    f.end_bonus = std::max(0.0f, p.word_score);
    f.word_bonus = std::max(0.0f, unknown) + std::max(0.0f, scored);
  }
  HotwordsHeader hotwords{};
  if (p.hotwords.host) hotwords = table_header<HotwordsHeader>(p.hotwords.host, TableKind::hotwords, "the hotwords");
  f.one_symbol = 1;
  double largest = 0;
  for (int64_t c = 0; c < p.C; ++c) {
    const int32_t* begin = symbols + first_symbol[c];
    const int32_t* end = symbols + first_symbol[c + 1];
    const int64_t boundaries = std::count(begin, end, kBoundarySymbol);
    // It ends as many words as it has boundaries, and shows one more to be unknown.
    const double words = double(boundaries) * f.end_bonus + (double(boundaries) + 1) * f.word_bonus;
    largest = std::max(largest, words + most_of_hotwords(hotwords, end - begin, boundaries));
    if (end - begin > 1) f.one_symbol = 0;
  }
  f.largest_bonus = static_cast<float>(largest * (1 + 1e-6));
  return f;
}

void ngram_scores(const void* table, const int32_t* words, int64_t count, bool start, float* scores) {
  const NGramView model = ngram_view({table, table});
  int32_t node = start ? model.start : 0;
  for (int64_t i = 0; i < count; ++i) scores[i] = ngram_score(model, node, words[i], &node);
}

FusionTrace trace_fusion(const FusionView& f, const int32_t* tokens, int64_t count) {
  FusionTrace trace;
  const auto add = [&](const FusionBonus& bonus) {
    trace.bonus.ngram += bonus.ngram;
    trace.bonus.words += bonus.words;
    trace.bonus.hotwords += bonus.hotwords;
    if (std::isinf(fusion_total(f, bonus))) trace.allowed = false;
  };
  FusionWord open{-1, 0, 0};
  const auto end_word = [&](const FusionState& state) {
    open.index = -1;
    if (has_words(f.lexicon, state.word)) {
      float score;
      int32_t next;
      open.index = f.lexicon.words[fusion_choose_word(f, state, &score, &next)].index;
    }
    trace.words.push_back(open);
  };

  FusionState state = fusion_start(f);
  for (int64_t i = 0; i < count; ++i) {
    FusionState walked = state;
    FusionBonus counted_below;
    for (int32_t at = f.first_symbol[tokens[i]]; f.has_boundary && at < f.first_symbol[tokens[i] + 1]; ++at) {
      if (f.symbols[at] != kBoundarySymbol) {
        if (walked.word == kEmptyWord) open.begin = static_cast<int32_t>(i);
        open.end = static_cast<int32_t>(i) + 1;
      } else if (walked.word != kEmptyWord) {
        end_word(walked);
      }
      fusion_symbol(f, f.symbols[at], &walked, &counted_below);
    }
    add(fusion_extend_parts(f, state, tokens[i], &state));
  }
  if (state.word != kEmptyWord) end_word(state);
  add(fusion_finish_parts(f, state));
  return trace;
}

}  // namespace fastctc
