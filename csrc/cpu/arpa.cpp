// Reads ARPA files: a header with the number of n-grams of each order, a section for each order, and \end\.
#include <array>
#include <cstring>
#include <stdexcept>

#include "cpu/arpa_text.h"
#include "cpu/ngram_builder.h"
#include "cpu/word_index.h"
#include "fastctc/language_model.h"

namespace fastctc {
namespace {

constexpr int kHighestOrder = 16;
constexpr std::size_t kLongestLine = 1 << 20;
constexpr double kLn10 = 2.302585092994045684;
constexpr int kLargestBackoff = 1000000;  // so that sums of several stay finite and exact to a thousandth

// The text or its beginning, as UTF-8 whatever it is: other bytes as \xff, and so are control characters.
std::string quoted(std::string_view text) {
  constexpr std::size_t kShown = 60;
  constexpr char kDigits[] = "0123456789abcdef";
  std::string shown = "'";
  std::size_t i = 0;
  while (i < text.size() && i < kShown) {
    const std::size_t length = utf8_length(text.substr(i));
    if (length > 0 && static_cast<unsigned char>(text[i]) >= ' ') {
      shown.append(text.substr(i, length));
      i += length;
    } else {
      const auto byte = static_cast<unsigned char>(text[i++]);
      shown.append({'\\', 'x', kDigits[byte >> 4], kDigits[byte & 15]});
    }
  }
  return shown + (i < text.size() ? "...'" : "'");
}

std::string section_name(int order) { return "\\" + std::to_string(order) + "-grams:"; }

}  // namespace

struct ArpaReader::State {
  enum class Part { before_data, counts, section, after_end };

  explicit State(float score) : unknown_score(score) {}

  float unknown_score;
  Part part = Part::before_data;
  int64_t line_number = 0;
  std::string unfinished;  // the beginning of a line whose end has not come yet
  std::vector<int64_t> counts;
  int section = 0;   // its order
  int64_t seen = 0;  // n-grams in it
  WordIndex words;
  std::unique_ptr<NGramBuilder> builder;
  int32_t unknown = -1;
  bool unknown_is_listed = false;

  int order() const { return static_cast<int>(counts.size()); }

  [[noreturn]] void fail(const std::string& what) const {
    throw std::invalid_argument("line " + std::to_string(line_number) + ": " + what);
  }

  void read_line(std::string_view line) {
    ++line_number;
    if (line_number == 1 && line.substr(0, 3) == "\xef\xbb\xbf") line.remove_prefix(3);
    line = trim(line);
    if (part == Part::before_data) {
      if (line == "\\data\\") part = Part::counts;
      if (line_number == 1 && line.substr(0, 7) == "mmap lm")
        fail("a model in kenlm's binary form; give the ARPA text");
      return;
    }
    if (line.empty()) return;
    if (part == Part::after_end) fail("text after \\end\\: " + quoted(line));
    if (line[0] == '\\' && read_keyword(line)) return;
    if (part == Part::counts) {
      read_count(line);
    } else {
      read_ngram(line);
    }
  }

  // Whether a line that begins with a backslash is one of the format's own.
  bool read_keyword(std::string_view line) {
    if (line == "\\end\\") {
      if (section != order() || section == 0) fail("\\end\\ where " + section_name(section + 1) + " should be");
      end_section();
      part = Part::after_end;
      return true;
    }
    constexpr std::string_view kTail = "-grams:";
    if (line.size() <= kTail.size() + 1 || line.substr(line.size() - kTail.size()) != kTail) return false;
    int64_t named;
    if (!parse_count(line.substr(1, line.size() - kTail.size() - 1), &named)) return false;
    begin_section(named, line);
    return true;
  }

  void read_count(std::string_view line) {
    if (line.substr(0, 5) != "ngram")
      fail("'ngram 1=...' or " + section_name(1) + " was expected, not " + quoted(line));
    const std::string_view equation = trim(line.substr(5));
    const std::size_t sign = equation.find('=');
    int64_t order_read, count;
    if (sign == std::string_view::npos || !parse_count(trim(equation.substr(0, sign)), &order_read) ||
        !parse_count(trim(equation.substr(sign + 1)), &count)) {
      fail("a count like 'ngram 2=1000' was expected, not " + quoted(line));
    }
    if (order_read != order() + 1) {
      fail("the count of order " + std::to_string(order() + 1) + " should come next, not " + quoted(line));
    }
    if (order_read > kHighestOrder) fail("orders above " + std::to_string(kHighestOrder) + " are not read");
    counts.push_back(count);
  }

  void begin_section(int64_t named, std::string_view line) {
    if (part == Part::counts) {
      if (counts.empty()) fail("no count like 'ngram 1=1000' before " + quoted(line));
      builder = std::make_unique<NGramBuilder>(order());
    } else {
      end_section();
    }
    if (named != section + 1 || named > order()) {
      fail(section < order() ? section_name(section + 1) + " should come next, not " + quoted(line)
                             : "\\end\\ should come next, not " + quoted(line));
    }
    part = Part::section;
    section = static_cast<int>(named);
    seen = 0;
  }

  void end_section() {
    if (seen != counts[section - 1]) {
      fail(section_name(section) + " ends after " + std::to_string(seen) + " n-grams; \\data\\ announces " +
           std::to_string(counts[section - 1]));
    }
    if (section == 1) settle_unknown();
  }

  void settle_unknown() {
    if (words.size() == 0) fail(section_name(1) + " is empty");
    unknown = words.find("<unk>");
    if (unknown < 0) unknown = words.find("<UNK>");
    unknown_is_listed = unknown >= 0;
    if (unknown_is_listed) return;
    unknown = words.add("<unk>");
    builder->add_unigram(unknown_score, 0);
  }

  void read_ngram(std::string_view line) {
    if (++seen > counts[section - 1]) {
      fail(section_name(section) + " has more n-grams than the " + std::to_string(counts[section - 1]) +
           " that \\data\\ announces");
    }
    std::string_view rest = line;
    const double score = read_score(take_field(&rest));
    std::array<std::string_view, kHighestOrder> fields;
    for (int i = 0; i < section; ++i) {
      fields[i] = take_field(&rest);
      if (fields[i].empty()) fail_fields(line);
    }
    const std::string_view last = take_field(&rest);
    if (!trim(rest).empty()) fail_fields(line);
    const double backoff = last.empty() ? 0.0 : read_backoff(last);
    const auto ln_score = static_cast<float>(score * kLn10);
    const auto ln_backoff = static_cast<float>(backoff * kLn10);
    if (section == 1) {
      add_unigram(fields[0], ln_score, ln_backoff);
    } else {
      add_longer(fields.data(), ln_score, ln_backoff);
    }
  }

  [[noreturn]] void fail_fields(std::string_view line) const {
    fail("a log10 probability, " + std::to_string(section) + (section == 1 ? " word" : " words") +
         (section < order() ? " and perhaps a back-off were" : " and nothing more were") + " expected, not " +
         quoted(line));
  }

  double read_score(std::string_view field) const {
    double score;
    if (!parse_number(field, &score)) fail(quoted(field) + " is not a log10 probability");
    if (score > 0) fail("the log10 probability " + quoted(field) + " is above 0");
    return score;
  }

  double read_backoff(std::string_view field) const {
    double backoff;
    if (!parse_number(field, &backoff) || std::isinf(backoff)) fail(quoted(field) + " is not a log10 back-off");
    if (std::fabs(backoff) > kLargestBackoff) {
      fail("the log10 back-off " + quoted(field) + " is beyond " + std::to_string(kLargestBackoff));
    }
    if (section == order() && backoff != 0) fail("n-grams of the highest order have no back-off, not " + quoted(field));
    return backoff;
  }

  void add_unigram(std::string_view word, float score, float backoff) {
    if (!is_utf8(word)) fail("the word is not UTF-8 text");
    if (words.find(word) >= 0) fail("the word " + quoted(word) + " is there twice");
    if (words.size() >= std::numeric_limits<int32_t>::max() - 2) fail("more than 2^31 - 3 words");
    words.add(word);
    builder->add_unigram(score, backoff);
  }

  void add_longer(const std::string_view* fields, float score, float backoff) {
    std::array<int32_t, kHighestOrder> numbers;
    for (int i = 0; i < section; ++i) {
      numbers[i] = words.find(fields[i]);
      if (numbers[i] < 0 || (numbers[i] == unknown && !unknown_is_listed)) {
        fail("the word " + quoted(fields[i]) + " is not among the " + section_name(1));
      }
    }
    switch (builder->add(numbers.data(), section, score, backoff)) {
      case NGramBuilder::Added::yes:
        return;
      case NGramBuilder::Added::repeated:
        fail("this n-gram is there twice");
      case NGramBuilder::Added::too_many:
        fail("more n-grams than the tables can hold");
    }
  }
};

ArpaReader::ArpaReader(float unknown_score) : state_(std::make_unique<State>(unknown_score)) {}

ArpaReader::~ArpaReader() = default;

void ArpaReader::feed(const char* text, std::size_t size) {
  State& state = *state_;
  while (size > 0) {
    const auto* newline = static_cast<const char*>(std::memchr(text, '\n', size));
    const std::size_t length = newline == nullptr ? size : static_cast<std::size_t>(newline - text);
    if (state.unfinished.size() + length > kLongestLine) {
      ++state.line_number;
      state.fail("longer than " + std::to_string(kLongestLine) + " bytes; this is no ARPA file");
    }
    if (newline == nullptr) {
      state.unfinished.append(text, size);
      return;
    }
    if (state.unfinished.empty()) {
      state.read_line({text, length});
    } else {
      state.unfinished.append(text, length);
      state.read_line(state.unfinished);
      state.unfinished.clear();
    }
    text += length + 1;
    size -= length + 1;
  }
}

int64_t ArpaReader::lines() const { return state_->line_number; }

NGramModel ArpaReader::finish() {
  State& state = *state_;
  if (!state.unfinished.empty()) state.read_line(state.unfinished);
  if (state.part == State::Part::before_data) state.fail("the text ends without a line \\data\\; this is no ARPA file");
  if (state.part != State::Part::after_end) state.fail("the text ends before \\end\\");
  NGramModel model;
  model.table = state.builder->finish(state.words.find("<s>"), state.words.find("</s>"), state.unknown);
  model.vocabulary = state.words.release();
  model.counts = state.counts;
  model.unknown = state.unknown;
  model.unknown_is_listed = state.unknown_is_listed;
  return model;
}

}  // namespace fastctc
