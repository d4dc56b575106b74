// Tables of what decoders add to the network's scores: n-gram models, lexicons, hotwords.
//
// Each table is one block of bytes that holds no address, aligned to 16: it can be stored, and copied to a device as it
// is. Blocks are read on the machine that made them, or on one of the same byte order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/fusion.h"

namespace fastctc {

using TableBlock = std::vector<char>;

struct NGramModel {
  TableBlock table;
  std::string vocabulary;         // UTF-8, a line feed after each word, in the order of the model's word numbers
  std::vector<int64_t> counts;    // n-grams of each order, as the file has them
  int32_t unknown = 0;            // the number of the unknown word
  bool unknown_is_listed = true;  // the file has it
};

// Reads the text of an ARPA file, in pieces of any size. Time and memory are linear in the text.
// feed and finish throw std::invalid_argument, beginning with "line 12: ", where the text is no ARPA file; the reader
// is of no use afterwards. Not safe to share between threads.
class ArpaReader {
 public:
  // `unknown_score`: natural log given to unknown words where the file lists neither <unk> nor <UNK>.
  explicit ArpaReader(float unknown_score);
  ~ArpaReader();
  void feed(const char* text, std::size_t size);
  // Whole lines read so far.
  int64_t lines() const;
  NGramModel finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The scores ln p of `count` words one after the other, into `scores` (count). `start`: begin at the start of a
// sentence, else with nothing before. Word numbers are not checked.
void ngram_scores(const void* table, const int32_t* words, int64_t count, bool start, float* scores);

// Spellings in symbols above 0: spelling i is symbols[first[i] .. first[i + 1]), of the word `indices[i]`, which the
// n-gram model knows as ngram_words[i]. Indices ascend. Empty spellings are left out; a spelling repeated for one word
// counts once.
// Throws std::invalid_argument where there are 2^31 - 1 nodes or more.
TableBlock make_lexicon(const int32_t* symbols, const int64_t* first, int64_t count, const int32_t* indices,
                        const int32_t* ngram_words);

// Phrases in symbols, 0 included, with the bonus of each occurrence. Of a phrase that is there more than once the
// largest bonus counts. `after_boundary`: an utterance begins as if the boundary had just been read. Throws as above.
TableBlock make_hotwords(const int32_t* symbols, const int64_t* first, int64_t count, const float* bonuses,
                         bool after_boundary);

// A table where the host reads it, and where kernels read it: the same address, or a device's copy. Null: none.
struct TableAddress {
  const void* host = nullptr;
  const void* data = nullptr;
};

struct FusionParams {
  TableAddress ngram, lexicon, hotwords;
  TableAddress tokens;  // int32: first_symbol (C + 1), symbols, then token_words (C) for NGramUnit::token
  int64_t C = 0;
  NGramUnit unit = NGramUnit::none;
  float ngram_weight = 0, word_score = 0, unknown_score = 0;
};

// Throws std::invalid_argument where a block is not a table of its kind.
FusionView make_fusion_view(const FusionParams& params);

// The bonuses of all classes at once, for each node of the n-gram model and of the hotwords, so that a state's are a
// sum of two rows. Empty where there is no such sum (lexicons, models of words, tokens of several symbols) and where it
// would be large: above 64 classes, or 32 MiB. The blank's is -inf. Throws as above.
TableBlock make_bonus_rows(const FusionParams& params, int64_t blank);

struct FusionWord {
  int32_t index;       // in the lexicon; -1: unknown
  int32_t begin, end;  // its tokens, those that have at least one of its symbols: [begin, end)
};

struct FusionTrace {
  FusionBonus bonus;
  bool allowed = true;
  std::vector<FusionWord> words;  // empty where no token has the boundary
};

// What `count` tokens add from the start of an utterance to its end, and the words they spell. On the host.
FusionTrace trace_fusion(const FusionView& fusion, const int32_t* tokens, int64_t count);

}  // namespace fastctc
