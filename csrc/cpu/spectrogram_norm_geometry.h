// How a batch of spectrograms is cut into slabs for the kernels, and where it is masked.
#pragma once

#include <algorithm>
#include <cstdint>

#include "fastctc/spectrogram_norm.h"
#include "spectrogram_norm_kernel.h"

namespace fastctc {

// Inner features [begin, end) of one plane.
struct Range {
  int64_t plane = 0, begin = 0, end = 0;
};

// Bands, electrodes and bins as planes of inner features: as many of them as lie evenly in memory are inner ones. A
// feature's number is (band * electrodes + electrode) * bins + bin, whatever is merged.
class Geometry {
 public:
  explicit Geometry(const SpectrogramNormParams& p)
      : views_{p.x, p.out, p.grad},
        size_(p.dtype == DType::float64   ? 8
              : p.dtype == DType::float32 ? 4
                                          : 2),
        bands_(p.shape.b),
        electrodes_(p.shape.e),
        inner_(p.shape.f) {
    // Masks of channels differ between planes, so that these stay apart.
    const bool apart = p.masks && p.mask_rows != p.shape.n;
    for (int round = 0; round < 2 && !apart; ++round) merge();
    features_inside_ = inner_ == 1 || all(&SpectrogramView::f);
    // Few features with many frames behind each other are better taken by frames.
    if (inner_ < 8 && all(&SpectrogramView::t)) features_inside_ = false;
  }

  bool features_inside() const { return features_inside_; }
  // features are inside, and utterances next
  bool frames_outside() const { return features_inside_ && views_[0].n < views_[0].t; }
  int64_t planes() const { return bands_ * electrodes_; }
  int64_t inner() const { return inner_; }
  int64_t size() const { return size_; }
  int64_t feature(int64_t plane, int64_t inner) const { return plane * inner_ + inner; }

  // Frames [begin, end) of utterance n.
  NormSlab slab(int64_t n, const Range& range, int64_t begin, int64_t end) const {
    NormSlab s{};
    s.lanes_are_features = features_inside_;
    const int64_t frames = end - begin, width = range.end - range.begin;
    s.rows = features_inside_ ? frames : width;
    s.lanes = features_inside_ ? width : frames;
    s.x = at(views_[0], n, range, begin, s.x_stride);
    s.out = at(views_[1], n, range, begin, s.out_stride);
    s.grad = at(views_[2], n, range, begin, s.grad_stride);
    return s;
  }

 private:
  bool all(int64_t SpectrogramView::* stride) const {
    for (const SpectrogramView& view : views_)
      if (view.data && view.*stride != 1) return false;
    return true;
  }

  // The innermost of the outer axes becomes part of the inner one, where its stride allows that in all views.
  void merge() {
    for (const SpectrogramView& view : views_)
      if (view.data && electrodes_ > 1 && inner_ > 1 && view.e != inner_ * view.f) return;
    for (SpectrogramView& view : views_) {
      if (electrodes_ > 1 && inner_ == 1) view.f = view.e;
      view.e = view.b;
    }
    inner_ *= electrodes_;
    electrodes_ = bands_;
    bands_ = 1;
  }

  char* at(const SpectrogramView& view, int64_t n, const Range& range, int64_t frame, int64_t& row_stride) const {
    row_stride = features_inside_ ? view.t : view.f;
    if (!view.data) return nullptr;
    const int64_t band = range.plane / electrodes_, electrode = range.plane % electrodes_;
    const int64_t offset = n * view.n + frame * view.t + band * view.b + electrode * view.e + range.begin * view.f;
    return static_cast<char*>(view.data) + offset * size_;
  }

  SpectrogramView views_[3];
  int64_t size_;
  int64_t bands_, electrodes_, inner_;
  bool features_inside_;
};

// The masks of one plane of one utterance.
class Masks {
 public:
  Masks(const SpectrogramNormParams& p, const Geometry& g, int64_t n, const Range& range)
      : bins_(p.shape.f), features_inside_(g.features_inside()) {
    if (!p.masks) return;
    const int64_t row = p.mask_rows == p.shape.n ? n : n * p.shape.b * p.shape.e + range.plane;
    const int32_t* begin = p.masks + row * p.mask_count * 2;
    frames_ = begin;
    features_ = begin + 2 * p.time_masks;
    end_ = begin + 2 * p.mask_count;
  }

  bool keeps_frame(int64_t t) const { return outside(frames_, features_, t); }
  bool keeps_feature(int64_t inner) const { return features_ == end_ || outside(features_, end_, inner % bins_); }
  bool any_row() const { return features_inside_ ? frames_ != features_ : features_ != end_; }
  bool any_lane() const { return features_inside_ ? features_ != end_ : frames_ != features_; }

 private:
  static bool outside(const int32_t* begin, const int32_t* end, int64_t at) {
    for (const int32_t* mask = begin; mask != end; mask += 2)
      if (mask[0] <= at && at < mask[1]) return false;
    return true;
  }

  int64_t bins_;
  bool features_inside_;
  const int32_t* frames_ = nullptr;
  const int32_t* features_ = nullptr;
  const int32_t* end_ = nullptr;
};

}  // namespace fastctc
