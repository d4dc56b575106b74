#include "fastctc/ctc_loss.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "../core/ctc_topology.h"
#include "batch.h"
#include "cpu_target.h"
#include "flush_denormals.h"
#include "workspace.h"

namespace fastctc {
namespace {

std::atomic<int64_t> workspace_mb{256};

// from here on a gradient is written past the caches: it would only push out what is still needed
constexpr int64_t kStreamBytes = int64_t(16) << 20;

double real_at(const void* p, DType dtype, int64_t i) {
  return dtype == DType::float64 ? static_cast<const double*>(p)[i] : double(static_cast<const float*>(p)[i]);
}

void set_real(void* p, DType dtype, int64_t i, double value) {
  if (dtype == DType::float64)
    static_cast<double*>(p)[i] = value;
  else
    static_cast<float*>(p)[i] = static_cast<float>(value);
}

CtcLossStatus check_lengths(const CtcLossParams& p) {
  int64_t total = 0;
  for (int64_t n = 0; n < p.N; ++n) {
    const int64_t frames = p.input_lengths ? p.input_lengths[n] : 0;
    if (frames > p.T) return {CtcLossFault::input_length_above_T, n, frames, -1};
    if (frames < 0) return {CtcLossFault::input_length_negative, n, frames, -1};
    if (!p.target_lengths) continue;
    const int64_t labels = p.target_lengths[n];
    if (labels < 0) return {CtcLossFault::target_length_negative, n, labels, -1};
    if (labels > p.targets_numel) {
      if (p.targets_stride == 0) return {CtcLossFault::target_lengths_sum, -1, labels, -1};
      return {CtcLossFault::target_length_above_width, n, labels, -1};
    }
    total += labels;
  }
  if (p.target_lengths && p.targets_stride == 0 && total != p.targets_numel)
    return {CtcLossFault::target_lengths_sum, -1, total, -1};
  return {};
}

CtcLossStatus check_labels(const CtcLossParams& p) {
  const std::vector<const int64_t*> labels = label_rows(p);
  for (int64_t n = 0; n < p.N; ++n)
    for (int64_t i = 0; i < p.target_lengths[n]; ++i)
      if (labels[n][i] < 0 || labels[n][i] >= p.C) return {CtcLossFault::label_out_of_range, n, labels[n][i], i};
  return {};
}

double reduction_scale(const CtcLossParams& p, int64_t n) {
  if (p.reduction != Reduction::mean) return 1;
  return 1.0 / (double(p.N) * double(std::max<int64_t>(p.target_lengths[n], 1)));
}

class Batch {
 public:
  Batch(const CtcLossParams& p, std::vector<const int64_t*> labels)
      : p_(p),
        labels_(std::move(labels)),
        kernels_(ctc_loss_kernels()),
        loss_(p.N),
        schedule_(p.N, p.num_threads, [&](int64_t n) { return cost(n); }) {
    alpha_bytes_ = (workspace_mb.load() << 20) / schedule_.threads();
    stream_ = p.T * p.N * p.C * size_of(p.dtype) >= kStreamBytes;
  }

  void run() {
    int64_t bytes = 0;
    for (int64_t n = 0; n < p_.N; ++n)
      if (feasible(n)) bytes = std::max(bytes, kernels_.workspace_bytes(int(p_.dtype), utterance(n)));
    schedule_.run<FlushDenormals>(bytes, [this](int64_t n, void* workspace) { run_row(n, workspace); });
    if (p_.loss) reduce();
  }

 private:
  int64_t cost(int64_t n) const { return p_.input_lengths[n] * (p_.C + 8 * p_.target_lengths[n]); }

  bool feasible(int64_t n) const {
    const int64_t frames = p_.input_lengths[n];
    return frames > 0 && frames >= frames_needed(labels_[n], p_.target_lengths[n]);
  }

  CtcUtterance utterance(int64_t n) const {
    CtcUtterance u{};
    const int64_t size = size_of(p_.dtype);
    u.scores = static_cast<const char*>(p_.scores) + n * p_.scores_stride_n * size;
    u.scores_stride = p_.scores_stride_t;
    if (p_.grad) u.grad = static_cast<char*>(p_.grad) + n * p_.grad_stride_n * size;
    u.grad_stride = p_.grad_stride_t;
    u.labels = labels_[n];
    u.T = p_.input_lengths[n];
    u.C = p_.C;
    u.S = p_.target_lengths[n];
    u.blank = p_.blank;
    u.from_logits = p_.from_logits;
    u.subtract_only = p_.true_grad && !p_.from_logits;
    u.zero_infinity = p_.zero_infinity;
    u.stream_grad = stream_;
    u.grad_scale = reduction_scale(p_, n);
    if (p_.grad_out) u.grad_scale *= real_at(p_.grad_out, p_.dtype, p_.reduction == Reduction::none ? n : 0);
    u.alpha_bytes = alpha_bytes_;
    return u;
  }

  void run_row(int64_t n, void* workspace) {
    CtcUtterance u = utterance(n);
    u.workspace = workspace;
    if (feasible(n)) {
      kernels_.run(int(p_.dtype), u);
    } else {
      u.loss = u.T == 0 && u.S == 0 ? 0 : std::numeric_limits<double>::infinity();
      if (u.grad) kernels_.fill_impossible(int(p_.dtype), u);
    }
    loss_[n] = p_.zero_infinity && std::isinf(u.loss) ? 0 : u.loss;
    if (u.grad) clear_padding(u);
  }

  void clear_padding(const CtcUtterance& u) const {
    const int64_t size = size_of(p_.dtype);
    for (int64_t t = u.T; t < p_.T; ++t)
      std::memset(static_cast<char*>(u.grad) + t * u.grad_stride * size, 0, size_t(p_.C * size));
  }

  void reduce() const {
    if (p_.reduction == Reduction::none) {
      for (int64_t n = 0; n < p_.N; ++n) set_real(p_.loss, p_.dtype, n, loss_[n]);
      return;
    }
    double total = 0;
    for (int64_t n = 0; n < p_.N; ++n) total += loss_[n] * reduction_scale(p_, n);
    set_real(p_.loss, p_.dtype, 0, total);
  }

  const CtcLossParams& p_;
  const std::vector<const int64_t*> labels_;
  const CtcLossKernels& kernels_;
  std::vector<double> loss_;
  RowSchedule schedule_;
  int64_t alpha_bytes_;
  bool stream_;
};

}  // namespace

CtcLossStatus ctc_loss_check(const CtcLossParams& params) {
  const CtcLossStatus status = check_lengths(params);
  if (status.fault != CtcLossFault::none || !params.target_lengths || !params.targets) return status;
  return check_labels(params);
}

CtcLossStatus ctc_loss_cpu(const CtcLossParams& params) {
  const CtcLossStatus status = ctc_loss_check(params);
  if (status.fault != CtcLossFault::none) return status;
  if (params.grad) prefer_huge_pages(params.grad, params.T * params.N * params.C * size_of(params.dtype));
  Batch(params, label_rows(params)).run();
  return {};
}

void set_max_workspace_mb(int64_t mb) { workspace_mb.store(std::clamp<int64_t>(mb, 1, int64_t(1) << 40)); }
int64_t max_workspace_mb() { return workspace_mb.load(); }

}  // namespace fastctc
