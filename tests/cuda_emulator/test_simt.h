// A list of tests for a binary without a framework: each file registers its own, test_simt.cpp runs one by name.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "cuda/platform.h"

struct Test {
  const char* name;
  void (*run)();
};
inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}
struct Registered {
  Registered(const char* name, void (*run)()) { tests().push_back({name, run}); }
};
#define TEST(name)                                        \
  static void name();                                     \
  static const Registered registered_##name(#name, name); \
  static void name()

#define EXPECT(condition)                                                 \
  do {                                                                    \
    if (!(condition)) {                                                   \
      std::printf("%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                       \
    }                                                                     \
  } while (false)

inline void set_order(int order) { setenv("FASTCTC_SIMT_ORDER", std::to_string(order).c_str(), 1); }
constexpr int kOrders = 6;

// Makes the attempt in every order; it must throw an error that has all the words, each time.
inline void expect_error(const std::vector<std::string>& words, const std::function<void()>& attempt) {
  for (int order = 0; order < kOrders; ++order) {
    set_order(order);
    std::string message = "no error";
    try {
      attempt();
    } catch (const fastctc::simt::Error& error) {
      message = error.what();
    }
    for (const std::string& word : words) {
      if (message.find(word) != std::string::npos) continue;
      std::printf("order %d: expected \"%s\" in: %s\n", order, word.c_str(), message.c_str());
      std::exit(1);
    }
  }
}
