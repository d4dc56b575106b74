#include <algorithm>

#include "fastctc/spectrogram_norm.h"

namespace fastctc {
namespace {

struct Words {
  uint32_t w[4];
};

Words philox(Words counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t first = uint64_t(0xD2511F53) * counter.w[0], second = uint64_t(0xCD9E8D57) * counter.w[2];
    counter = {{uint32_t(second >> 32) ^ counter.w[1] ^ key0, uint32_t(second),
                uint32_t(first >> 32) ^ counter.w[3] ^ key1, uint32_t(first)}};
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return counter;
}

// uniform on [0, choices)
int64_t pick(uint32_t word, int64_t choices) { return int64_t((uint64_t(word) * uint64_t(choices)) >> 32); }

}  // namespace

void draw_spectrogram_masks(const SpectrogramMaskParams& p) {
  int32_t* mask = p.masks;
  for (int64_t row = 0; row < p.rows; ++row) {
    const int64_t n = row / (p.rows / p.shape.n);
    const int64_t frames = std::clamp<int64_t>(p.lengths[n], 0, p.shape.t);
    for (int64_t m = 0; m < p.time_count + p.freq_count; ++m, mask += 2) {
      const bool of_time = m < p.time_count;
      const int64_t size = of_time ? frames : p.shape.f;
      const int64_t limit =
          of_time ? std::min(p.time_width, (size * p.time_share) >> 16) : std::min(p.freq_width, size);
      const Words words = philox({{uint32_t(m), uint32_t(row), 0, 0}}, uint32_t(p.seed), uint32_t(p.seed >> 32));
      const int64_t width = pick(words.w[0], limit + 1);
      mask[0] = int32_t(pick(words.w[1], size - width + 1));
      mask[1] = mask[0] + int32_t(width);
    }
  }
}

}  // namespace fastctc
