// Runs the CUDA kernels of the CTC loss, float32, in the emulator and compares them with lattice_reference.h: without
// Python, so that ThreadSanitizer can watch. Exit status 0 where all cases agree. Arguments choose cases by name, in
// that order; then the first that does not agree is the last.
#include <cstdio>
#include <cstring>

#include "fastctc/ctc_loss_cuda.h"
#include "lattice_reference.h"
#include "runner.h"

namespace {

using fastctc::CtcLossFault;
using fastctc::Reduction;
using runner::Buffer;
using runner::Random;

struct Case {
  const char* name;
  int64_t T, N, C, labels;      // the longest target has that many labels
  int64_t bound = 0;            // what the kernels are told to be the longest; 0: the truth
  int64_t workspace = 1 << 28;  // bytes
  bool logits = true, padded = true, zero_infinity = false, true_grad = false, gradient = true;
  Reduction reduction = Reduction::none;
  int64_t blank = 0;
  int64_t alphabet = 0;      // labels are below; 0: all classes
  double spread = 3;         // of the scores
  bool faults = false;       // rows with lengths and labels out of range
  bool tight = false;        // no more frames than the target needs
  int64_t lead = 0;          // elements before the scores, so that rows are not aligned
  int64_t first_label = -1;  // of the first row; -1: a random one
  bool coarse = false;       // states that matter are far below their neighbours
  double infinite = 0;       // share of the scores that are -inf
  bool no_blank = false;     // likewise all of the blank's
};

struct Batch {
  std::vector<std::vector<int64_t>> targets;
  std::vector<int64_t> input_lengths, target_lengths, flat;
  std::vector<CtcLossFault> faults;
  int64_t width = 0;
};

int64_t frames_needed(const std::vector<int64_t>& target) {
  int64_t repeats = 0;
  for (size_t i = 1; i < target.size(); ++i) repeats += target[i] == target[i - 1];
  return int64_t(target.size()) + repeats;
}

// The first row is as long as can be; later ones are shorter in both ways, the last but one has no label, and where
// there are four or more the last is one frame too short for its target.
Batch make_batch(const Case& c) {
  Random random(uint64_t(c.T * 31 + c.C * 7 + c.labels));
  Batch batch;
  batch.width = c.labels;
  const int64_t alphabet = c.alphabet ? c.alphabet : c.C;
  for (int64_t n = 0; n < c.N; ++n) {
    int64_t labels = std::max<int64_t>(0, c.labels - n * (c.labels / 5 + 1)),
            frames = std::max<int64_t>(1, c.T - 3 * n);
    if (n > 0 && n == c.N - 2) labels = 0;
    std::vector<int64_t> target(static_cast<size_t>(labels));
    for (int64_t& label : target) {
      label = int64_t(random.below(uint64_t(alphabet)));
      if (label == c.blank) label = (label + 1) % c.C;
    }
    if (n == 0 && c.first_label >= 0) target[0] = c.first_label;
    while (n < c.N - 1 && frames_needed(target) > frames) target.pop_back();
    if (c.tight) frames = std::max<int64_t>(1, frames_needed(target));
    if (c.N >= 4 && n == c.N - 1) {
      target.assign(2, (c.blank + 1) % c.C);
      frames = 2;
    }
    batch.input_lengths.push_back(frames);
    batch.target_lengths.push_back(int64_t(target.size()));
    batch.faults.push_back(CtcLossFault::none);
    batch.targets.push_back(target);
  }
  for (const auto& target : batch.targets) {
    batch.flat.insert(batch.flat.end(), target.begin(), target.end());
    if (c.padded) batch.flat.resize(batch.flat.size() + size_t(batch.width) - target.size(), int64_t(1) << 40);
  }
  if (c.faults) {
    batch.input_lengths[0] = c.T + 1;
    batch.faults[0] = CtcLossFault::input_length_above_T;
    batch.flat[size_t(batch.width)] = c.C;
    batch.faults[1] = CtcLossFault::label_out_of_range;
    batch.target_lengths[2] = -1;
    batch.faults[2] = CtcLossFault::target_length_negative;
    batch.target_lengths[3] = batch.width + 1;
    batch.faults[3] = CtcLossFault::target_length_above_width;
  }
  return batch;
}

struct Expected {
  std::vector<double> losses, grad;  // of the reduced loss, grad_out included
};

Expected expect(const Case& c, const Batch& batch, Buffer<float>& scores, const std::vector<float>& grad_out) {
  Expected expected;
  expected.grad.assign(size_t(c.T * c.N * c.C), 0.0);
  double reduced = 0;
  for (int64_t n = 0; n < c.N; ++n) {
    const bool fault = batch.faults[size_t(n)] != CtcLossFault::none;
    const bool any_length = batch.faults[size_t(n)] == CtcLossFault::input_length_above_T;
    const int64_t frames = any_length ? c.T : batch.input_lengths[size_t(n)];
    std::vector<double> x(size_t(frames * c.C));
    for (int64_t t = 0; t < frames; ++t) {
      double* const frame = &x[size_t(t * c.C)];
      double sum = -reference::kInfinity;
      for (int64_t k = 0; k < c.C; ++k) {
        frame[k] = double(scores[c.lead + (t * c.N + n) * c.C + k]);
        sum = reference::log_add(sum, frame[k]);
      }
      for (int64_t k = 0; c.logits && k < c.C; ++k) frame[k] -= sum;
    }
    reference::Row row;
    row.loss = reference::kInfinity;
    if (!fault) row = reference::ctc(x, frames, c.C, batch.targets[size_t(n)], c.blank);
    const bool impossible = row.loss == reference::kInfinity;
    const double loss = impossible && c.zero_infinity ? 0 : row.loss;
    const double length = std::max<double>(1, double(batch.targets[size_t(n)].size()));
    double scale = grad_out[c.reduction == Reduction::none ? size_t(n) : 0];
    if (c.reduction == Reduction::mean) scale /= length * double(c.N);
    expected.losses.push_back(loss);
    reduced += c.reduction == Reduction::mean ? loss / length / double(c.N) : loss;
    for (int64_t t = 0; t < frames; ++t) {
      for (int64_t k = 0; k < c.C; ++k) {
        const double p = c.true_grad ? 0 : std::exp(x[size_t(t * c.C + k)]);
        double grad = impossible ? 0 : scale * (p - row.posteriors[size_t(t * c.C + k)]);
        if (impossible && !c.zero_infinity) grad = NAN;
        expected.grad[size_t((t * c.N + n) * c.C + k)] = grad;
      }
    }
  }
  if (c.reduction != Reduction::none) expected.losses.assign(1, reduced);
  return expected;
}

bool close(double value, double wanted, double absolute, double relative) {
  if (std::isnan(wanted) || std::isinf(wanted)) return std::isnan(wanted) ? std::isnan(value) : value == wanted;
  return std::fabs(value - wanted) <= absolute + relative * std::fabs(wanted);
}

// Prints the first element that is wrong. Returns whether there is none.
bool agree(const char* what, float* values, const std::vector<double>& wanted, double absolute, double relative) {
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (close(double(values[i]), wanted[i], absolute, relative)) continue;
    std::printf("%s[%zu] is %.9g and should be %.9g; ", what, i, double(values[i]), wanted[i]);
    return false;
  }
  return true;
}

bool run(const Case& c) {
  Batch batch = make_batch(c);
  Random random(99);
  Buffer<float> scores(c.lead + c.T * c.N * c.C);
  for (int64_t i = 0; i < c.T * c.N * c.C; ++i) {
    double x = c.spread * (random.uniform() + random.uniform() + random.uniform() - 1.5);
    if (c.infinite > 0 && random.uniform() < c.infinite) x = -reference::kInfinity;
    if (c.no_blank && i % c.C == c.blank) x = -reference::kInfinity;
    scores[c.lead + i] = float(c.logits ? x : x - c.spread);
  }
  std::vector<float> grad_out(c.reduction == Reduction::none ? size_t(c.N) : 1);
  for (float& g : grad_out) g = float(0.5 + random.uniform());
  const Expected expected = expect(c, batch, scores, grad_out);

  fastctc::CtcLossCudaParams p;
  p.shape.T = c.T;
  p.shape.N = c.N;
  p.shape.C = c.C;
  p.shape.max_labels = std::max(c.bound, c.labels);
  p.shape.total_labels = c.padded ? c.N * p.shape.max_labels : int64_t(batch.flat.size());
  p.shape.want_grad = c.gradient;
  p.scores = scores.data() + c.lead;
  p.scores_stride_t = c.N * c.C;
  p.scores_stride_n = c.C;
  Buffer<int64_t> flat(int64_t(batch.flat.size()));
  std::copy(batch.flat.begin(), batch.flat.end(), flat.data());
  p.targets = flat.data();
  p.targets_numel = c.padded ? batch.width : int64_t(batch.flat.size());
  p.targets_stride = c.padded ? batch.width : 0;
  p.input_lengths = batch.input_lengths.data();
  p.target_lengths = batch.target_lengths.data();
  p.blank = c.blank;
  p.from_logits = c.logits;
  p.zero_infinity = c.zero_infinity;
  p.true_grad = c.true_grad;
  p.reduction = c.reduction;
  p.max_workspace_bytes = c.workspace;
  const auto memory = fastctc::ctc_loss_cuda_memory(p.shape, c.workspace);
  Buffer<char> saved(memory.saved_bytes), scratch(memory.scratch_bytes);
  Buffer<float> loss(int64_t(expected.losses.size())), grad(c.T * c.N * c.C);
  Buffer<int32_t> faults(c.N);
  p.saved = saved.data();
  p.scratch = scratch.data();
  p.loss = loss.data();
  p.row_faults = faults.data();
  if (const int error = fastctc::ctc_loss_cuda_forward(p)) {
    std::printf("forward: %s; ", fastctc::cuda_error_text(error));
    return false;
  }
  bool good = agree("loss", loss.data(), expected.losses, 1e-5, 1e-6);
  for (int64_t n = 0; n < c.N; ++n) {
    if (faults[n] == int32_t(batch.faults[size_t(n)])) continue;
    std::printf("fault of row %d is %d; ", int(n), int(faults[n]));
    good = false;
  }
  if (!c.gradient) return good;
  // The scratch memory is the caller's again.
  std::memset(scratch.data(), 0xff, size_t(memory.scratch_bytes));
  p.scratch = nullptr;
  p.grad_out = grad_out.data();
  p.grad = grad.data();
  p.grad_stride_t = p.scores_stride_t;
  p.grad_stride_n = p.scores_stride_n;
  if (const int error = fastctc::ctc_loss_cuda_backward(p)) {
    std::printf("backward: %s; ", fastctc::cuda_error_text(error));
    return false;
  }
  return agree("grad", grad.data(), expected.grad, c.coarse ? 3e-4 : 4e-6, 1e-5) && good;
}

std::vector<Case> cases() {
  std::vector<Case> all;
  const auto add = [&](const char* name, int64_t T, int64_t N, int64_t C, int64_t labels) -> Case& {
    all.push_back(Case{name, T, N, C, labels});
    return all.back();
  };
  // by the number of classes: parts of a warp, warps and blocks per frame
  add("few_classes", 21, 4, 11, 6);
  Case& odd = add("one_label_few_classes", 9, 1, 5, 1);
  odd.lead = 3;
  Case& middle = add("classes_for_a_warp", 7, 4, 1003, 3);
  middle.lead = 1;
  add("classes_for_a_block", 6, 2, 2503, 3).lead = 2;
  // a warp's shared memory has room for 512 classes
  add("class_after_a_warps_part", 40, 1, 640, 3).first_label = 512;
  // by the way in and out
  Case& given = add("log_probabilities", 20, 4, 12, 6);
  given.logits = false;
  given.padded = false;
  Case& truth = add("true_gradient", 17, 3, 9, 5);
  truth.logits = false;
  truth.true_grad = true;
  truth.reduction = Reduction::sum;
  Case& mean = add("mean", 19, 5, 13, 7);
  mean.reduction = Reduction::mean;
  mean.zero_infinity = true;
  mean.blank = 12;
  mean.padded = false;
  add("wide_scores", 30, 2, 10, 8).spread = 60;
  Case& far = add("far_scores", 60, 2, 10, 12);
  far.spread = 2500;
  far.coarse = true;
  add("infinite_scores", 40, 3, 10, 9).infinite = 0.15;
  add("infinite_scores_of_the_blank", 60, 1, 10, 9).no_blank = true;
  Case& nothing = add("all_scores_infinite", 130, 1, 10, 60);
  nothing.infinite = 1;
  nothing.logits = false;
  Case& given_infinite = add("infinite_log_probabilities", 45, 2, 10, 9);
  given_infinite.infinite = 0.15;
  given_infinite.logits = false;
  add("loss_only", 23, 4, 11, 6).gradient = false;
  Case& wrong = add("faults", 14, 6, 9, 5);
  wrong.faults = true;
  Case& zeroed = add("faults_zeroed", 14, 6, 9, 5);
  zeroed.faults = zeroed.zero_infinity = true;
  zeroed.reduction = Reduction::sum;
  // by the length of the target: one warp per direction, several, four pairs per lane, a barrier per frame
  add("one_warp", 67, 2, 7, 33).alphabet = 4;
  add("one_warp_tight", 50, 2, 30, 40).tight = true;
  add("two_warps", 100, 2, 8, 75).alphabet = 5;
  add("two_warps_tight", 140, 1, 40, 90).tight = true;
  Case& short_row = add("more_warps_than_a_row_needs", 60, 3, 9, 20);
  short_row.bound = 200;
  Case& three = add("three_warps_loss_only", 151, 1, 9, 140);
  three.gradient = false;
  // every path counts, so states rise the most from frame to frame, also beyond a warp's last lane
  add("nearly_uniform_scores", 240, 1, 64, 126).spread = 2e-3;
  // long enough for mantissas that are never brought back to overflow
  add("many_frames", 1600, 1, 4, 2);
  Case& quads = add("four_pairs_per_lane", 160, 1, 12, 135);
  quads.bound = 520;
  Case& rounds = add("more_labels_than_threads_sort_at_once", 280, 1, 40, 262);
  rounds.gradient = false;
  Case& general = add("general", 31, 3, 11, 9);
  general.workspace = 1;
  Case& general_loss = add("general_loss_only", 26, 2, 11, 9);
  general_loss.workspace = 1;
  general_loss.gradient = false;
  Case& segments = add("general_segments", 75, 2, 7, 9);
  segments.workspace = 1;
  Case& together = add("general_rows_together", 96, 4, 7, 11);
  together.workspace = 7000;
  Case& infinite = add("general_infinite_scores", 40, 3, 10, 9);
  infinite.infinite = 0.15;
  infinite.workspace = 1;
  Case& global = add("general_in_global_memory", 29, 2, 11, 9);
  global.bound = 1600;
  global.workspace = 1;
  Case& turns = add("rows_take_turns", 24, 5, 9, 6);
  turns.workspace = 6000;
  Case& turns_loss = add("rows_take_turns_loss_only", 24, 5, 9, 6);
  turns_loss.workspace = 2000;
  turns_loss.gradient = false;
  // two rows beyond what the lattice kernel takes, beside rows that it does take
  add("long_and_short", 1030, 4, 40, 990);
  return all;
}

}  // namespace

int main(int argc, char** argv) { return runner::run_cases(argc, argv, cases(), run); }
