#include "fastctc/forced_align.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "../core/ctc_topology.h"
#include "batch.h"
#include "cpu_target.h"

namespace fastctc {
namespace {

// Nothing is held while a thread aligns: subnormal scores count, so that a path never depends on the processor's mode.
struct NoState {};

class Batch {
 public:
  Batch(const ForcedAlignParams& p, std::vector<const int64_t*> labels)
      : p_(p),
        labels_(std::move(labels)),
        kernels_(forced_align_kernels()),
        real_bytes_(p.dtype == DType::float64 ? 8 : 4),
        schedule_(p.N, p.num_threads, [&](int64_t n) { return p.input_lengths[n] * (p.C + 8 * p.target_lengths[n]); }) {
    back_bytes_ = (max_workspace_mb() << 20) / schedule_.threads();
  }

  void run() {
    int64_t bytes = 0;
    for (int64_t n = 0; n < p_.N; ++n)
      if (feasible(n)) bytes = std::max(bytes, kernels_.workspace_bytes(int(p_.dtype), utterance(n)));
    schedule_.run<NoState>(bytes, [this](int64_t n, void* workspace) { run_row(n, workspace); });
  }

 private:
  bool feasible(int64_t n) const {
    const int64_t frames = p_.input_lengths[n];
    return frames > 0 && frames >= frames_needed(labels_[size_t(n)], p_.target_lengths[n]);
  }

  AlignUtterance utterance(int64_t n) const {
    AlignUtterance u{};
    u.scores = static_cast<const char*>(p_.scores) + n * p_.scores_stride_n * size_of(p_.dtype);
    u.scores_stride = p_.scores_stride_t;
    u.labels = labels_[size_t(n)];
    u.T = p_.input_lengths[n];
    u.C = p_.C;
    u.S = p_.target_lengths[n];
    u.blank = p_.blank;
    u.from_logits = p_.from_logits;
    u.back_bytes = back_bytes_;
    u.path = p_.paths + n * p_.T;
    u.path_scores = static_cast<char*>(p_.path_scores) + n * p_.T * real_bytes_;
    return u;
  }

  void run_row(int64_t n, void* workspace) const {
    AlignUtterance u = utterance(n);
    u.workspace = workspace;
    if (feasible(n))
      kernels_.run(int(p_.dtype), u);
    else if (u.T > 0 || u.S > 0)
      u.fault = int32_t(ForcedAlignFault::impossible);
    p_.row_faults[n] = u.fault;
    if (u.fault == 0)
      fill(u, u.T, u.blank, 0);
    else if (u.fault == int32_t(ForcedAlignFault::impossible))
      fill(u, 0, -1, -std::numeric_limits<double>::infinity());
    else
      fill(u, 0, -1, std::numeric_limits<double>::quiet_NaN());
  }

  // frames from `first` on
  void fill(const AlignUtterance& u, int64_t first, int64_t label, double score) const {
    std::fill(u.path + first, u.path + p_.T, label);
    if (p_.dtype == DType::float64)
      std::fill_n(static_cast<double*>(u.path_scores) + first, p_.T - first, score);
    else
      std::fill_n(static_cast<float*>(u.path_scores) + first, p_.T - first, float(score));
  }

  const ForcedAlignParams& p_;
  const std::vector<const int64_t*> labels_;
  const ForcedAlignKernels& kernels_;
  const int64_t real_bytes_;
  const RowSchedule schedule_;
  int64_t back_bytes_;
};

CtcLossStatus check_blanks(const ForcedAlignParams& p, const std::vector<const int64_t*>& labels) {
  for (int64_t n = 0; n < p.N; ++n)
    for (int64_t i = 0; i < p.target_lengths[n]; ++i)
      if (labels[size_t(n)][i] == p.blank) return {CtcLossFault::label_is_blank, n, p.blank, i};
  return {};
}

}  // namespace

CtcLossStatus forced_align_cpu(const ForcedAlignParams& params) {
  CtcLossParams checked;
  checked.T = params.T;
  checked.N = params.N;
  checked.C = params.C;
  checked.targets = params.targets;
  checked.targets_numel = params.targets_numel;
  checked.targets_stride = params.targets_stride;
  checked.input_lengths = params.input_lengths;
  checked.target_lengths = params.target_lengths;
  CtcLossStatus status = ctc_loss_check(checked);
  if (status.fault != CtcLossFault::none) return status;
  std::vector<const int64_t*> labels = label_rows(params);
  status = check_blanks(params, labels);
  if (status.fault != CtcLossFault::none) return status;
  Batch(params, std::move(labels)).run();
  return {};
}

}  // namespace fastctc
