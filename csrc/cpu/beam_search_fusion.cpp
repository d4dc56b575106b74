#include "beam_search_fusion.h"

#include <cstring>

namespace fastctc {
namespace {

static_assert(sizeof(FusionState) == BeamFusion::kStateInts * sizeof(int32_t), "a beam's slot keeps another state");

const FusionView& view_of(const void* self) { return *static_cast<const FusionView*>(self); }

FusionState state_of(const int32_t* ints) {
  FusionState state;
  std::memcpy(&state, ints, sizeof state);
  return state;
}

void start(const void* self, int32_t* ints) {
  const FusionState state = fusion_start(view_of(self));
  std::memcpy(ints, &state, sizeof state);
}

double extend(const void* self, const int32_t* ints, int32_t token, int32_t* next) {
  FusionState after;
  const float bonus = fusion_extend(view_of(self), state_of(ints), token, &after);
  std::memcpy(next, &after, sizeof after);
  return bonus;
}

double largest_bonus(const void* self, const int32_t* ints) {
  return fusion_largest_bonus(view_of(self), state_of(ints));
}

void largest_bonuses(const void* self, const int32_t* ints, int32_t classes, float* bonuses) {
  const FusionState state = state_of(ints);
  for (int32_t token = 0; token < classes; ++token) {
    bonuses[token] = fusion_largest_bonus(view_of(self), state, token);
  }
}

// Each token's bonus is a look-up.
bool has_steps(const FusionView& f) {
  const bool ngram = f.unit == NGramUnit::none || (f.unit == NGramUnit::token && f.ngram.steps != nullptr);
  const bool hotwords = f.hotwords.nodes == nullptr || f.hotwords.steps != nullptr;
  return ngram && hotwords && f.lexicon.nodes == nullptr && f.one_symbol;
}

// fusion_extend's sums, of all tokens at once.
void step_bonuses(const void* self, const int32_t* ints, int32_t classes, float* bonuses) {
  const FusionView& f = view_of(self);
  const FusionState state = state_of(ints);
  const NGramStep* const ngram =
      f.unit == NGramUnit::token ? f.ngram.steps + static_cast<int64_t>(state.ngram) * f.ngram.words : nullptr;
  const float weight = f.ngram_weight, word_score = f.word_score;
  const bool in_word = state.word != kEmptyWord;
  const int32_t symbols = f.hotwords.symbols;
  const HotwordStep* const steps = f.hotwords.steps + static_cast<int64_t>(state.hotword) * symbols;
  const float elsewhere = f.hotwords.nodes != nullptr ? -f.hotwords.extra[state.hotword].held : 0.0f;
  for (int32_t token = 0; token < classes; ++token) {
    float bonus = ngram != nullptr ? weight * ngram[f.token_words[token]].score : 0.0f;
    const int32_t at = f.first_symbol[token];
    if (at < f.first_symbol[token + 1]) {
      const int32_t symbol = f.symbols[at];
      const bool boundary = symbol == kBoundarySymbol;
      if (boundary && in_word) bonus += word_score;
      if (!boundary || in_word) bonus += symbol < symbols ? steps[symbol].bonus : elsewhere;
    }
    bonuses[token] = bonus;
  }
}

double finish(const void* self, const int32_t* ints) { return fusion_finish(view_of(self), state_of(ints)); }

}  // namespace

BeamFusion beam_fusion(const FusionView& view) {
  const bool exact = has_steps(view);
  return {&view, start, extend, largest_bonus, exact ? step_bonuses : largest_bonuses, exact, finish};
}

}  // namespace fastctc
