// Normalisation of spectrograms over time, with logarithm and masks, and its gradient, on host memory.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace fastctc {

// The logarithm that comes before the statistics.
enum class SpectrogramLog : int {
  none = 0,
  log1p = 1,  // log(1 + x)
  log10 = 2,  // log10(x + log_eps)
};

// Utterances, frames, bands, electrodes and bins, in this order wherever there are five of something.
struct SpectrogramShape {
  int64_t n = 0, t = 0, b = 0, e = 0, f = 0;
};

struct SpectrogramView {
  void* data = nullptr;                       // in SpectrogramNormParams::dtype
  int64_t n = 0, t = 0, b = 0, e = 0, f = 0;  // strides in elements
};

// Every pointer is to host memory. "real" is double for float64 and float for all other dtypes. A group of statistics
// is (utterance, band, electrode, bin), without the utterance where over_batch and without the bin where over_freq;
// "per group" is contiguous in that order, "per channel group" the same without the utterance.
struct SpectrogramNormParams {
  DType dtype = DType::float32;
  SpectrogramShape shape;
  // Of x, y, grad and dx together: all have bins of stride 1 (or a single bin, with electrodes, or a single electrode
  // with bands, of stride 1), or all have frames of stride 1.
  SpectrogramView x;
  SpectrogramView out;                         // y, or the gradient of x; data null: statistics or sums only
  SpectrogramView grad;                        // gradient of y; only for the gradient
  const int64_t* lengths = nullptr;            // (N) frames of each utterance; the rest of `out` becomes 0
  bool over_batch = false, over_freq = false;  // statistics run over time, and over these
  SpectrogramLog log = SpectrogramLog::none;
  double log_eps = 0, eps = 0;
  const void* weight = nullptr;    // real, per channel group; null: 1
  const void* bias = nullptr;      // real, per channel group; null: 0
  const int32_t* masks = nullptr;  // (mask_rows, mask_count, 2), intervals [start, end), frames first; null: none
  int64_t mask_rows = 0;           // N, or N * bands * electrodes: a set for each channel
  int64_t mask_count = 0, time_masks = 0;
  double* mean = nullptr;  // per group; out where `reduce` in the forward pass, else in
  double* var = nullptr;   // the same; of the population, without eps
  // Backward only, per group. With `reduce` out: the sums of g and of g * h (h: x, normalised). Otherwise in: these
  // sums over the count of the group, or null where the statistics do not depend on x.
  double* grad_sum = nullptr;
  double* grad_dot = nullptr;
  bool reduce = true;  // compute the statistics, or the sums; otherwise take them as given
  int num_threads = 1;
};

// Each returns -1, or the first utterance whose length is negative or above T, and then nothing was written.
// They throw std::bad_alloc when workspace cannot be had, and are safe to call from many threads at once.
int64_t spectrogram_norm_cpu(const SpectrogramNormParams& params);
int64_t spectrogram_norm_gradient_cpu(const SpectrogramNormParams& params);

struct SpectrogramMaskParams {
  uint64_t seed = 0;
  const int64_t* lengths = nullptr;  // (N), clamped to [0, T]
  SpectrogramShape shape;
  int64_t time_count = 0, time_width = 0;
  int64_t time_share = 0;  // of the length, in 1 / 65536
  int64_t freq_count = 0, freq_width = 0;
  int64_t rows = 0;          // N, or N * bands * electrodes
  int32_t* masks = nullptr;  // (rows, time_count + freq_count, 2), out
};

// Intervals drawn by Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), key the seed,
// counter (mask, row, 0, 0).
void draw_spectrogram_masks(const SpectrogramMaskParams& params);

}  // namespace fastctc
