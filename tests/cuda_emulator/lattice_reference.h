// The CTC loss as the textbook has it, in double and in log space, for one row. Slow, and independent of the kernels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace reference {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

inline double log_add(double a, double b) {
  const double high = std::max(a, b), low = std::min(a, b);
  return high == -kInfinity ? high : high + std::log1p(std::exp(low - high));
}

struct Row {
  double loss = 0;
  std::vector<double> posteriors;  // (frames, classes)
};

// log_probs: (frames, classes). Where no path is possible the loss is infinite and the posteriors are not to be used.
inline Row ctc(const std::vector<double>& log_probs, int64_t frames, int64_t classes,
               const std::vector<int64_t>& target, int64_t blank) {
  const int64_t states = 2 * int64_t(target.size()) + 1;
  const auto label = [&](int64_t s) { return s % 2 ? target[size_t(s / 2)] : blank; };
  // Whether a path may come to state s from s - 2.
  const auto skips = [&](int64_t s) { return s >= 3 && s % 2 && label(s) != label(s - 2); };
  const auto at = [&](int64_t t, int64_t s) { return size_t(t * states + s); };
  const auto score = [&](int64_t t, int64_t s) { return log_probs[size_t(t * classes + label(s))]; };
  Row row;
  row.posteriors.assign(size_t(frames * classes), 0.0);
  if (frames == 0) {
    row.loss = target.empty() ? 0 : kInfinity;
    return row;
  }
  std::vector<double> alpha(size_t(frames * states), -kInfinity), beta(alpha);
  for (int64_t t = 0; t < frames; ++t) {
    for (int64_t s = 0; s < states; ++s) {
      double sum = t == 0 ? (s < 2 ? 0.0 : -kInfinity) : alpha[at(t - 1, s)];
      if (t > 0 && s > 0) sum = log_add(sum, alpha[at(t - 1, s - 1)]);
      if (t > 0 && skips(s)) sum = log_add(sum, alpha[at(t - 1, s - 2)]);
      alpha[at(t, s)] = sum + score(t, s);
    }
  }
  for (int64_t t = frames - 1; t >= 0; --t) {  // without the emission of its own frame
    for (int64_t s = 0; s < states; ++s) {
      if (t == frames - 1) {
        beta[at(t, s)] = s >= states - 2 ? 0.0 : -kInfinity;
        continue;
      }
      double sum = beta[at(t + 1, s)] + score(t + 1, s);
      if (s + 1 < states) sum = log_add(sum, beta[at(t + 1, s + 1)] + score(t + 1, s + 1));
      if (s + 2 < states && skips(s + 2)) sum = log_add(sum, beta[at(t + 1, s + 2)] + score(t + 1, s + 2));
      beta[at(t, s)] = sum;
    }
  }
  double total = alpha[at(frames - 1, states - 1)];
  if (states > 1) total = log_add(total, alpha[at(frames - 1, states - 2)]);
  row.loss = -total;
  if (total == -kInfinity) return row;
  for (int64_t t = 0; t < frames; ++t)
    for (int64_t s = 0; s < states; ++s)
      row.posteriors[size_t(t * classes + label(s))] += std::exp(alpha[at(t, s)] + beta[at(t, s)] - total);
  return row;
}

}  // namespace reference
