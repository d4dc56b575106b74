// What the programs that run kernels in the emulator share: numbers, memory, and a main function's work.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <vector>

namespace runner {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2862933555777941757ull + 3037000493ull) {}
  uint64_t below(uint64_t limit) {
    state_ = state_ * 6364136223846793005ull + 1442695040888963407ull;
    return (state_ >> 33) % limit;
  }
  double uniform() { return double(below(1 << 24)) / double(1 << 24); }

 private:
  uint64_t state_;
};

// Exactly as long as asked for, so that AddressSanitizer sees both ends; filled with NaN.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count) : count_(count) {
    void* memory = nullptr;
    const size_t bytes = std::max<size_t>(size_t(count) * sizeof(T), 1);
    if (posix_memalign(&memory, 256, bytes) != 0) throw std::bad_alloc();
    std::memset(memory, 0xff, bytes);
    memory_.reset(static_cast<T*>(memory));
  }
  T* data() { return memory_.get(); }
  T& operator[](int64_t i) { return memory_.get()[i]; }
  int64_t size() const { return count_; }

 private:
  struct Free {
    void operator()(T* memory) const { std::free(memory); }
  };
  std::unique_ptr<T, Free> memory_;
  int64_t count_;
};

// Runs the cases that the arguments name, in that order, until one does not agree; without arguments all of them, and
// where the only one is a name after a minus sign all but that. A case has a name. Returns the exit status.
template <class Case, class Run>
int run_cases(int argc, char** argv, const std::vector<Case>& all, Run run) {
  std::vector<const Case*> chosen;
  for (int i = 1; i < argc; ++i)
    for (const Case& c : all)
      if (std::strcmp(argv[i], c.name) == 0) chosen.push_back(&c);
  const bool all_but_one = argc == 2 && argv[1][0] == '-';
  if (argc < 2 || all_but_one)
    for (const Case& c : all)
      if (!all_but_one || std::strcmp(argv[1] + 1, c.name) != 0) chosen.push_back(&c);
  int wrong = 0;
  for (const Case* c : chosen) {
    bool good = false;
    try {
      good = run(*c);
    } catch (const std::exception& error) {
      std::printf("%s; ", error.what());
    }
    std::printf("%s: %s\n", c->name, good ? "agrees" : "WRONG");
    std::fflush(stdout);
    wrong += !good;
    if (wrong && argc > 1 && !all_but_one) break;
  }
  return wrong > 0 || chosen.empty();
}

}  // namespace runner
