#include "beam_search_align.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "batch.h"
#include "cpu_target.h"
#include "fastctc/forced_align.h"
#include "flush_denormals.h"
#include "simd/storage.h"

namespace fastctc {
namespace {

template <class X>
double score_as(const void* row, int64_t c) {
  return double(to_scalar(static_cast<const X*>(row)[c]));
}

double score_at(const void* row, DType dtype, int64_t c) {
  switch (dtype) {
    case DType::float16:
      return score_as<Float16>(row, c);
    case DType::bfloat16:
      return score_as<BFloat16>(row, c);
    case DType::float32:
      return score_as<float>(row, c);
    default:
      return score_as<double>(row, c);
  }
}

class Aligner {
 public:
  Aligner(const BeamEmissions& emissions, BeamResult& result)
      : e_(emissions), r_(result), labels_(result.tokens.begin(), result.tokens.end()) {}

  // A labelling whose best path is not known.
  void mark_unknown(bool confidence) {
    r_.starts.assign(labels_.size(), 0);
    r_.ends.assign(labels_.size(), 0);
    if (confidence) r_.confidence.assign(labels_.size(), 0.0f);
  }

  void find_spans() {
    AlignUtterance u{};
    std::vector<int64_t> path(size_t(e_.frames));
    std::vector<double> path_scores(size_t(e_.frames));
    u.scores = e_.scores;
    u.scores_stride = e_.stride;
    u.labels = labels_.data();
    u.T = e_.frames;
    u.C = e_.C;
    u.S = int64_t(labels_.size());
    u.blank = e_.blank;
    u.nan_is_impossible = true;
    u.largest = e_.largest;
    u.back_bytes = int64_t(1) << 30;
    u.path = path.data();
    u.path_scores = path_scores.data();
    const ForcedAlignKernels& kernels = forced_align_kernels();
    std::vector<Workspace> workspace = take_workspaces(1, kernels.workspace_bytes(int(e_.dtype), u));
    u.workspace = workspace.front().data();
    kernels.run(int(e_.dtype), u);
    give_back_workspaces(std::move(workspace));
    // rounding alone can leave a labelling without a path of its own
    if (u.fault != int32_t(ForcedAlignFault::none)) return mark_unknown(false);
    int64_t before = e_.blank;
    for (int64_t t = 0; t < e_.frames; ++t) {
      const int64_t c = path[size_t(t)];
      if (c != before && c != e_.blank) {
        r_.starts.push_back(int32_t(t));
        r_.ends.push_back(int32_t(t));
      }
      if (c != e_.blank) r_.ends.back() = int32_t(t + 1);
      before = c;
    }
  }

  // The loss of the labels among their own classes alone is the one among all; so is its gradient.
  void find_confidence() {
    std::vector<int64_t> classes(labels_), places;
    classes.push_back(e_.blank);
    std::sort(classes.begin(), classes.end());
    classes.erase(std::unique(classes.begin(), classes.end()), classes.end());
    const auto place = [&](int64_t c) { return std::lower_bound(classes.begin(), classes.end(), c) - classes.begin(); };
    for (int64_t label : labels_) places.push_back(place(label));
    const size_t width = classes.size();
    std::vector<float> scores(size_t(e_.frames) * width), grad(scores.size());
    for (int64_t t = 0; t < e_.frames; ++t)
      for (size_t k = 0; k < width; ++k) {
        const float score = float(score_at(frame(t), e_.dtype, classes[k]) - normaliser(t));
        scores[size_t(t) * width + k] = std::isnan(score) ? -std::numeric_limits<float>::infinity() : score;
      }

    CtcUtterance u{};
    u.scores = scores.data();
    u.grad = grad.data();
    u.scores_stride = u.grad_stride = int64_t(width);
    u.labels = places.data();
    u.T = e_.frames;
    u.C = int64_t(width);
    u.S = int64_t(places.size());
    u.blank = place(e_.blank);
    u.subtract_only = true;
    u.zero_infinity = true;
    u.grad_scale = -1;  // the gradient is then the posterior
    u.alpha_bytes = int64_t(1) << 30;
    const CtcLossKernels& kernels = ctc_loss_kernels();
    std::vector<Workspace> workspace = take_workspaces(1, kernels.workspace_bytes(int(DType::float32), u));
    u.workspace = workspace.front().data();
    kernels.run(int(DType::float32), u);
    give_back_workspaces(std::move(workspace));
    for (size_t i = 0; i < places.size(); ++i) {
      double weight = 0, weighted = 0;
      for (int64_t t = r_.starts[i]; t < r_.ends[i]; ++t) {
        const size_t at = size_t(t) * width + size_t(places[i]);
        weight += grad[at];
        weighted += grad[at] * std::exp(double(scores[at]));
      }
      r_.confidence.push_back(weight > 0 ? float(std::min(weighted / weight, 1.0)) : 0.0f);
    }
  }

 private:
  const char* frame(int64_t t) const { return static_cast<const char*>(e_.scores) + t * e_.stride * size_of(e_.dtype); }
  double normaliser(int64_t t) const { return e_.log_normalisers ? e_.log_normalisers[t] : 0; }

  const BeamEmissions& e_;
  BeamResult& r_;
  std::vector<int64_t> labels_;
};

}  // namespace

void align_result(const BeamEmissions& emissions, bool confidence, BeamResult& result) {
  result.starts.clear();
  result.ends.clear();
  result.confidence.clear();
  if (result.tokens.empty()) return;
  const FlushDenormals flush;
  Aligner aligner(emissions, result);
  if (emissions.frames < int64_t(result.tokens.size())) return aligner.mark_unknown(confidence);
  aligner.find_spans();
  if (confidence) aligner.find_confidence();
}

}  // namespace fastctc
