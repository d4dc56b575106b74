// What the driver (spectrogram_norm.cpp) asks of each SIMD target: one rectangle of a spectrogram at a time.
#pragma once

#include <stdint.h>

namespace fastctc {

// `rows` x `lanes` values whose lanes are adjacent in memory. Either lanes are features (band, electrode, bin) and rows
// are frames, or the other way round; a value's constants and sums are those of its feature.
struct NormSlab {
  const void* x;
  int64_t x_stride;  // in elements from row to row, as are the others
  const void* grad;  // of y; null where it is 0
  int64_t grad_stride;
  void* out;
  int64_t out_stride;
  int64_t rows, lanes;
  bool lanes_are_features;
  int log;  // as fastctc::SpectrogramLog
  double log_eps;
  // real[kNormConstants][constants_stride], feature by feature, readable for a vector past the last
  const void* constants;
  int64_t constants_stride;
  const void* keep;  // integers of a real's size, -1 where a lane is kept and 0 where masked; null: all kept
  bool stream;       // write past the caches
  double* first;     // results of the reductions, feature by feature
  double* second;
  void* scratch;           // real[kNormConstants + 1][scratch_stride]
  int64_t scratch_stride;  // lanes, or kNormTurn where that is more, and a vector at least
};

// The most lanes of several rows whose constants are kept side by side.
constexpr int64_t kNormTurn = 4608;

// Constants of a feature. With d = v - mean, the mean as rounded to a real: y = a * d + b, and
// dx = a * (g - (b + c * d)) * dv/dx, in this order, so that an utterance of one frame, whose g is its own mean, has a
// gradient of exactly 0. What the mean lost in rounding is part of b: it may be large beside the deviation.
enum NormConstant { kMean, kA, kB, kC, kNormConstants };

struct NormKernels {
  // first: mean of v, second: sum of squared deviations from it
  void (*moments)(int dtype, const NormSlab& slab);
  void (*normalise)(int dtype, const NormSlab& slab);
  // adds to first the sum of g, to second the sum of g * d
  void (*gradient_sums)(int dtype, const NormSlab& slab);
  void (*input_gradient)(int dtype, const NormSlab& slab);
  void (*clear)(int dtype, const NormSlab& slab);  // writes zeros
};

extern const NormKernels spectrogram_norm_kernels_avx512;
extern const NormKernels spectrogram_norm_kernels_avx2;
extern const NormKernels spectrogram_norm_kernels_vec128;
extern const NormKernels spectrogram_norm_kernels_portable;

}  // namespace fastctc
