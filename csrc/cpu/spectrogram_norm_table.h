// The table of one SIMD target: the kernels of every type and logarithm.
#pragma once

#include "spectrogram_norm_run.h"

namespace {

template <class S, class X, class Body>
void with_log(const NormSlab& slab, Body body) {
  switch (slab.log) {
    case kLog1p:
      return body(Norm<S, X, kLog1p>{slab});
    case kLog10:
      return body(Norm<S, X, kLog10>{slab});
    default:
      return body(Norm<S, X, kNoLog>{slab});
  }
}

// dtype as in fastctc::DType; SF and SD: the target's vectors of float and of double
template <class SF, class SD, class Body>
void with_norm(int dtype, const NormSlab& slab, Body body) {
  switch (dtype) {
    case 0:
      return with_log<SF, Float16>(slab, body);
    case 1:
      return with_log<SF, BFloat16>(slab, body);
    case 2:
      return with_log<SF, float>(slab, body);
    default:
      return with_log<SD, double>(slab, body);
  }
}

template <class SF, class SD>
void norm_moments(int dtype, const NormSlab& slab) {
  with_norm<SF, SD>(dtype, slab,
                    [&](auto norm) { slab.lanes_are_features ? norm.moments_of_lanes() : norm.moments_of_rows(); });
}
template <class SF, class SD>
void norm_normalise(int dtype, const NormSlab& slab) {
  with_norm<SF, SD>(dtype, slab, [&](auto norm) {
    slab.lanes_are_features ? norm.template normalise<true>() : norm.template normalise<false>();
  });
}
template <class SF, class SD>
void norm_clear(int dtype, const NormSlab& slab) {
  with_norm<SF, SD>(dtype, slab, [](auto norm) { norm.clear(); });
}
template <class SF, class SD>
void norm_gradient_sums(int dtype, const NormSlab& slab) {
  with_norm<SF, SD>(dtype, slab, [&](auto norm) {
    slab.lanes_are_features ? norm.gradient_sums_of_lanes() : norm.gradient_sums_of_rows();
  });
}
template <class SF, class SD>
void norm_input_gradient(int dtype, const NormSlab& slab) {
  with_norm<SF, SD>(dtype, slab, [&](auto norm) {
    slab.lanes_are_features ? norm.template input_gradient<true>() : norm.template input_gradient<false>();
  });
}

}  // namespace

#define FASTCTC_DEFINE_NORM_KERNELS(name, float_lanes)                              \
  const fastctc::NormKernels fastctc::name = {                                      \
      norm_moments<Simd<float, float_lanes>, Simd<double, float_lanes / 2>>,        \
      norm_normalise<Simd<float, float_lanes>, Simd<double, float_lanes / 2>>,      \
      norm_gradient_sums<Simd<float, float_lanes>, Simd<double, float_lanes / 2>>,  \
      norm_input_gradient<Simd<float, float_lanes>, Simd<double, float_lanes / 2>>, \
      norm_clear<Simd<float, float_lanes>, Simd<double, float_lanes / 2>>,          \
  };
