// Numbers words in the order they come; hashed, in one piece of memory.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace fastctc {

class WordIndex {
 public:
  WordIndex() : slots_(64, -1) {}

  int32_t size() const { return static_cast<int32_t>(ends_.size()); }

  // The number of a word, or -1.
  int32_t find(std::string_view word) const { return slots_[slot(word)]; }

  // Numbers a word that is not there yet. It holds no line feed.
  int32_t add(std::string_view word) {
    const int32_t number = size();
    text_.append(word);
    ends_.push_back(text_.size());
    text_.push_back('\n');
    if (2 * ends_.size() > slots_.size()) {
      slots_.assign(2 * slots_.size(), -1);
      for (int32_t other = 0; other < number; ++other) slots_[slot(at(other))] = other;
    }
    slots_[slot(word)] = number;
    return number;
  }

  // Every word with a line feed after it.
  std::string release() { return std::move(text_); }

 private:
  std::string_view at(int32_t number) const {
    const std::size_t begin = number == 0 ? 0 : ends_[number - 1] + 1;
    return std::string_view(text_).substr(begin, ends_[number] - begin);
  }

  // Where the word is, or would be.
  std::size_t slot(std::string_view word) const {
    const std::size_t mask = slots_.size() - 1;
    std::size_t slot = std::hash<std::string_view>()(word) & mask;
    while (slots_[slot] >= 0 && at(slots_[slot]) != word) slot = (slot + 1) & mask;
    return slot;
  }

  std::string text_;
  std::vector<std::size_t> ends_;
  std::vector<int32_t> slots_;
};

}  // namespace fastctc
