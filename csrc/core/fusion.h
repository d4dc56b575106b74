// What a decoder adds to the scores of the network: n-gram model, lexicon, word score, hotwords.
//
// Everything here is a function of the tokens read so far, held in a FusionState. So hypotheses that are the same
// tokens are the same state, and a beam search may merge them as if there were nothing of this.
//
// Tokens are spelled in symbols: characters, or the tokens themselves. Symbol 0 is the boundary between words. A token
// may be several symbols ("_he" of a word-piece model: boundary, h, e), and none.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/host_device.h"
#include "core/ngram.h"
#include "core/trie.h"

namespace fastctc {

enum class NGramUnit : int32_t {
  none = 0,   // no model
  token = 1,  // it scores tokens
  word = 2,   // it scores words when they end, unknown ones as soon as it is certain that they are unknown
};

constexpr int32_t kBoundarySymbol = 0;
constexpr int32_t kEmptyWord = 0;     // the root of the lexicon
constexpr int32_t kUnknownWord = -1;  // the open word is in no lexicon

// Plain data, to be passed to kernels by value. Pointers are to host memory, or all to one device's.
struct FusionView {
  NGramView ngram;
  LexiconView lexicon;
  HotwordView hotwords;
  const int32_t* first_symbol = nullptr;  // (C + 1): token c is symbols[first_symbol[c] .. first_symbol[c + 1])
  const int32_t* symbols = nullptr;
  const int32_t* token_words = nullptr;  // (C) the model's word for each token; NGramUnit::token only
  NGramUnit unit = NGramUnit::none;
  int32_t has_boundary = 0;  // some token has the boundary symbol; words are followed then
  float ngram_weight = 0;    // above 0 where there is a model
  float word_score = 0;      // for each word, when it ends
  float unknown_score = 0;   // for each word outside the lexicon; -inf: there are none

  // Upper bounds on what one token adds, without the n-gram model of tokens.
  float largest_bonus = 0;  // from any state
  float end_bonus = 0;      // by the end of a word, where it has one symbol at most
  float word_bonus = 0;     // by any word, where it has one symbol at most
  int32_t one_symbol = 0;   // no token has more
};

// One per hypothesis.
struct FusionState {
  int32_t ngram;    // node of the n-gram model
  int32_t word;     // node of the lexicon where the open word stands; kEmptyWord, kUnknownWord
  int32_t hotword;  // node of the hotwords
};

// What tokens add to a score, in natural logs. -inf in total: they are not allowed.
struct FusionBonus {
  float ngram = 0;  // ln p, not weighted
  float words = 0;  // word_score, unknown_score
  float hotwords = 0;
};

FASTCTC_HOST_DEVICE static inline float fusion_total(const FusionView& f, const FusionBonus& b) {
  return f.ngram_weight * b.ngram + b.words + b.hotwords;
}

FASTCTC_HOST_DEVICE static inline FusionState fusion_start(const FusionView& f) {
  return {f.ngram.start, kEmptyWord, f.hotwords.start};
}

// The open word turns out to be in no lexicon.
FASTCTC_HOST_DEVICE static inline void fusion_leave_lexicon(const FusionView& f, FusionState* s, FusionBonus* b) {
  s->word = kUnknownWord;
  if (f.lexicon.nodes == nullptr) return;
  b->words += f.unknown_score;
  if (f.unit == NGramUnit::word) b->ngram += ngram_score(f.ngram, s->ngram, f.ngram.unknown, &s->ngram);
}

// The word of a spelling that the model likes best after what was read; the first of those that tie.
// Returns its place in lexicon.words. The lexicon has a word with that spelling.
FASTCTC_HOST_DEVICE static inline int32_t fusion_choose_word(const FusionView& f, const FusionState& s, float* score,
                                                             int32_t* next) {
  const int32_t first = f.lexicon.first_word[s.word], end = f.lexicon.first_word[s.word + 1];
  int32_t chosen = first;
  *score = 0;
  *next = s.ngram;
  if (f.unit != NGramUnit::word) return chosen;
  *score = ngram_score(f.ngram, s.ngram, f.lexicon.words[first].ngram_word, next);
  for (int32_t i = first + 1; i < end; ++i) {
    int32_t other_next;
    const float other = ngram_score(f.ngram, s.ngram, f.lexicon.words[i].ngram_word, &other_next);
    if (!(other > *score)) continue;
    chosen = i;
    *score = other;
    *next = other_next;
  }
  return chosen;
}

// Ends the open word. There is one.
FASTCTC_HOST_DEVICE static inline void fusion_end_word(const FusionView& f, FusionState* s, FusionBonus* b) {
  if (f.lexicon.nodes != nullptr && s->word > kEmptyWord) {
    if (f.lexicon.first_word[s->word] == f.lexicon.first_word[s->word + 1]) {
      fusion_leave_lexicon(f, s, b);
    } else {
      float score;
      int32_t next;
      fusion_choose_word(f, *s, &score, &next);
      b->ngram += score;
      s->ngram = next;
    }
  }
  b->words += f.word_score;
  s->word = kEmptyWord;
}

FASTCTC_HOST_DEVICE static inline void fusion_symbol(const FusionView& f, int32_t symbol, FusionState* s,
                                                     FusionBonus* b) {
  if (symbol == kBoundarySymbol) {
    if (s->word == kEmptyWord) return;  // a second boundary, or one at the start, changes nothing
    fusion_end_word(f, s, b);
  } else if (f.has_boundary && s->word != kUnknownWord) {
    const int32_t child = f.lexicon.nodes == nullptr ? -1 : trie_child(f.lexicon.nodes, s->word, symbol);
    if (child >= 0) {
      s->word = child;
    } else {
      fusion_leave_lexicon(f, s, b);
    }
  }
  if (f.hotwords.nodes != nullptr) b->hotwords += hotword_step(f.hotwords, symbol, &s->hotword);
}

// One more token: what it adds, by its parts, and the state after it, which means nothing where the total is -inf.
FASTCTC_HOST_DEVICE static inline FusionBonus fusion_extend_parts(const FusionView& f, const FusionState& state,
                                                                  int32_t token, FusionState* next) {
  FusionBonus bonus;
  FusionState s = state;
  if (f.unit == NGramUnit::token) bonus.ngram = ngram_score(f.ngram, s.ngram, f.token_words[token], &s.ngram);
  const int32_t end = f.first_symbol[token + 1];
  for (int32_t i = f.first_symbol[token]; i < end; ++i) fusion_symbol(f, f.symbols[i], &s, &bonus);
  *next = s;
  return bonus;
}

// The end of the utterance: the open word ends, the model scores the end of the sentence, and hotwords take back what
// they lent. -inf: the tokens cannot end here.
FASTCTC_HOST_DEVICE static inline FusionBonus fusion_finish_parts(const FusionView& f, const FusionState& state) {
  FusionBonus bonus;
  FusionState s = state;
  if (f.has_boundary) fusion_symbol(f, kBoundarySymbol, &s, &bonus);
  if (f.unit != NGramUnit::none && f.ngram.end >= 0) {
    bonus.ngram += ngram_score(f.ngram, s.ngram, f.ngram.end, &s.ngram);
  }
  if (f.hotwords.nodes != nullptr) bonus.hotwords -= f.hotwords.extra[s.hotword].held;
  return bonus;
}

FASTCTC_HOST_DEVICE static inline float fusion_extend(const FusionView& f, const FusionState& state, int32_t token,
                                                      FusionState* next) {
  return fusion_total(f, fusion_extend_parts(f, state, token, next));
}

FASTCTC_HOST_DEVICE static inline float fusion_finish(const FusionView& f, const FusionState& state) {
  return fusion_total(f, fusion_finish_parts(f, state));
}

// Sums of float32 are off by less.
constexpr float kBoundMargin = 1e-5f;

// No token adds more than this, from any state.
FASTCTC_HOST_DEVICE static inline float fusion_largest_bonus(const FusionView& f) {
  const float ngram = f.unit == NGramUnit::token ? f.ngram_weight * f.ngram.best : 0.0f;
  return f.largest_bonus + ngram + kBoundMargin;
}

// No token adds more than this in this state.
FASTCTC_HOST_DEVICE static inline float fusion_largest_bonus(const FusionView& f, const FusionState& state) {
  float bonus = kBoundMargin;
  if (f.unit == NGramUnit::token) bonus += f.ngram_weight * f.ngram.nodes[state.ngram].best;
  if (!f.one_symbol) return bonus + f.largest_bonus;
  bonus += f.word_bonus;
  if (state.word != kEmptyWord) bonus += f.end_bonus;
  if (f.hotwords.nodes != nullptr) bonus += f.hotwords.extra[state.hotword].best;
  return bonus;
}

// This token does not add more than this in this state.
FASTCTC_HOST_DEVICE static inline float fusion_largest_bonus(const FusionView& f, const FusionState& state,
                                                             int32_t token) {
  float bonus = 0;
  if (f.unit == NGramUnit::token) {
    int32_t next;
    const float score = f.ngram.steps != nullptr ? ngram_score(f.ngram, state.ngram, f.token_words[token], &next)
                                                 : f.ngram.nodes[state.ngram].best;
    bonus = f.ngram_weight * score;
  }
  // the larger the numbers, the further sums are off
  bonus += kBoundMargin + 1e-6f * std::fabs(bonus);
  if (!f.one_symbol) return bonus + f.largest_bonus;
  const int32_t at = f.first_symbol[token];
  if (at == f.first_symbol[token + 1]) return bonus;
  const int32_t symbol = f.symbols[at];
  if (symbol == kBoundarySymbol) {
    if (state.word == kEmptyWord) return bonus;
    bonus += f.end_bonus;
  }
  bonus += f.word_bonus;
  int32_t hotword = state.hotword;
  return f.hotwords.nodes != nullptr ? bonus + hotword_step(f.hotwords, symbol, &hotword) : bonus;
}

}  // namespace fastctc
