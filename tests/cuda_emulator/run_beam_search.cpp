// Runs the CUDA kernels of the beam search, float32, in the emulator and compares them with the textbook's search:
// without Python, so that ThreadSanitizer can watch. Arguments as of run_ctc_loss.
#include <cmath>
#include <cstdio>
#include <map>

#include "fastctc/beam_search_cuda.h"
#include "fastctc/language_model.h"
#include "lattice_reference.h"
#include "runner.h"

namespace {

using runner::Buffer;
using runner::Random;

struct Case {
  const char* name;
  int64_t T, N, C, beam;
  int64_t blank = 0, top_k = 0;
  double top_p = 1, threshold = 1e300, skip = 1;
  bool logits = true;
  double spread = 3;  // of the scores; 0: all are equal
  bool hotwords = false, faults = false;
  int64_t max_tokens = 0;  // what the alignment is told; 0: T
  int64_t align_bytes = 1 << 28;
};

using Prefix = std::vector<int32_t>;
using Row = std::vector<double>;

struct Entry {
  double blank = 0, token = 0, bonus = 0;
  fastctc::FusionState state{};
  double total() const { return blank + token; }
};

struct Result {
  Prefix tokens;
  double score, lm_score;
};

struct Hotwords {
  fastctc::TableBlock table;
  std::vector<int32_t> tokens;
  fastctc::FusionView view;

  explicit Hotwords(const Case& c) {
    // each token is a symbol of its own; "1 2", "2 2 3" and "3" are worth something, much even
    const int32_t symbols[] = {1, 2, 2, 2, 3, 3};
    const int64_t first[] = {0, 2, 5, 6};
    const float bonuses[] = {4.5f, 7.5f, -0.75f};
    table = fastctc::make_hotwords(symbols, first, 3, bonuses, false);
    for (int32_t k = 0; k <= c.C; ++k) tokens.push_back(k);
    for (int32_t k = 0; k < c.C; ++k) tokens.push_back(k + 1 == c.C ? 1 : k + 1);
    fastctc::FusionParams p;
    p.hotwords = {table.data(), table.data()};
    p.tokens = {tokens.data(), tokens.data()};
    p.C = c.C;
    view = fastctc::make_fusion_view(p);
  }
};

bool first_of(const Result& a, const Result& b) {
  if (a.score != b.score) return a.score > b.score;
  return a.tokens.size() != b.tokens.size() ? a.tokens.size() < b.tokens.size() : a.tokens < b.tokens;
}

// Classes that may make new prefixes.
std::vector<int32_t> permitted(const Case& c, const Row& p) {
  std::vector<int32_t> order;
  for (int32_t k = 0; k < c.C; ++k) order.push_back(k);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return p[size_t(a)] > p[size_t(b)]; });
  if (c.top_k > 0) order.resize(size_t(std::min(c.top_k, c.C)));
  double reached = 0;
  std::vector<int32_t> kept;
  for (int32_t k : order) {
    if (c.top_p < 1 && reached >= c.top_p) break;
    reached += p[size_t(k)];
    if (k != c.blank && p[size_t(k)] > 0) kept.push_back(k);
  }
  return kept;
}

// Hannun et al. 2014, with a map for the beam. `p`: probabilities of (T, C).
std::vector<Result> search(const Case& c, const std::vector<Row>& p, const fastctc::FusionView* fusion) {
  std::map<Prefix, Entry> beam;
  beam[{}].blank = 1;
  if (fusion) beam[{}].state = fastctc::fusion_start(*fusion);
  for (const Row& frame : p) {
    std::map<Prefix, Entry> next;
    const bool skips = c.skip < 1 && frame[size_t(c.blank)] > c.skip;
    for (const auto& [prefix, entry] : beam) {
      Entry after = entry;
      after.blank = entry.total() * frame[size_t(c.blank)];
      after.token = 0;
      if (!prefix.empty() && !skips) {
        const Prefix shorter(prefix.begin(), prefix.end() - 1);
        const auto parent = beam.find(shorter);
        double from = entry.token;
        if (parent != beam.end()) {
          const bool repeats = !shorter.empty() && shorter.back() == prefix.back();
          const Entry& of = parent->second;
          from += (repeats ? of.blank : of.total()) * std::exp(entry.bonus - of.bonus);
        }
        after.token = from * frame[size_t(prefix.back())];
      }
      next[prefix] = after;
    }
    for (int32_t k : skips ? std::vector<int32_t>() : permitted(c, frame))
      for (const auto& [prefix, entry] : beam) {
        Prefix longer = prefix;
        longer.push_back(k);
        if (beam.count(longer)) continue;
        Entry after;
        double bonus = 0;
        if (fusion) bonus = fastctc::fusion_extend(*fusion, entry.state, k, &after.state);
        const bool repeats = !prefix.empty() && prefix.back() == k;
        after.token = (repeats ? entry.blank : entry.total()) * std::exp(bonus) * frame[size_t(k)];
        after.bonus = entry.bonus + bonus;
        next[longer] = after;
      }
    std::vector<Result> ranked;
    for (const auto& [prefix, entry] : next)
      if (entry.total() > 0) ranked.push_back({prefix, entry.total(), 0});
    std::sort(ranked.begin(), ranked.end(), first_of);
    beam.clear();
    for (const Result& r : ranked)
      if (int64_t(beam.size()) < c.beam && (skips || r.score >= ranked.front().score * std::exp(-c.threshold)))
        beam[r.tokens] = next[r.tokens];
  }
  std::vector<Result> results;
  for (const auto& [prefix, entry] : beam) {
    const double ending = fusion ? fastctc::fusion_finish(*fusion, entry.state) : 0;
    results.push_back({prefix, std::log(entry.total()) + ending, entry.bonus + ending});
  }
  std::sort(results.begin(), results.end(), first_of);
  return results;
}

// The class of each frame on the best path.
std::vector<int64_t> best_path(const std::vector<Row>& p, const Prefix& tokens, int64_t blank) {
  const int64_t states = 2 * int64_t(tokens.size()) + 1, T = int64_t(p.size());
  const auto label = [&](int64_t s) { return s % 2 ? int64_t(tokens[size_t(s / 2)]) : blank; };
  std::vector<Row> best(size_t(T), Row(size_t(states), -reference::kInfinity));
  std::vector<std::vector<int>> from(size_t(T), std::vector<int>(size_t(states), 0));
  for (int64_t t = 0; t < T; ++t)
    for (int64_t s = 0; s < states; ++s) {
      double most = t == 0 && s < 2 ? 0 : -reference::kInfinity;
      for (int back = 0; t > 0 && back < 3 && back <= s; ++back) {
        if (back == 2 && (s % 2 == 0 || label(s) == label(s - 2))) continue;
        if (best[size_t(t - 1)][size_t(s - back)] <= most) continue;
        most = best[size_t(t - 1)][size_t(s - back)];
        from[size_t(t)][size_t(s)] = back;
      }
      best[size_t(t)][size_t(s)] = most + std::log(p[size_t(t)][size_t(label(s))]);
    }
  int64_t s = states - 1;
  if (states > 1 && best[size_t(T - 1)][size_t(s - 1)] > best[size_t(T - 1)][size_t(s)]) --s;
  std::vector<int64_t> path(static_cast<size_t>(T));
  for (int64_t t = T - 1; t >= 0; --t) {
    path[size_t(t)] = label(s);
    s -= from[size_t(t)][size_t(s)];
  }
  return path;
}

struct Out {
  Buffer<int64_t> tokens, lengths, starts, ends;
  Buffer<double> scores, lm_scores;
  Buffer<float> confidence;
  explicit Out(int64_t rows, int64_t T)
      : tokens(rows * T),
        lengths(rows),
        starts(rows * T),
        ends(rows * T),
        scores(rows),
        lm_scores(rows),
        confidence(rows * T) {}
};

bool times_agree(const Case& c, const std::vector<Row>& p, const Prefix& tokens, Out& out, int64_t at) {
  const std::vector<int64_t> path = best_path(p, tokens, c.blank);
  std::vector<double> logs;
  for (const Row& row : p)
    for (double x : row) logs.push_back(std::log(x));
  const std::vector<int64_t> target(tokens.begin(), tokens.end());
  const reference::Row lattice = reference::ctc(logs, int64_t(p.size()), c.C, target, c.blank);
  size_t label = 0;
  for (int64_t t = 0; t < int64_t(path.size());) {
    const int64_t k = path[size_t(t)], start = t;
    double weight = 0, weighted = 0;
    for (; t < int64_t(path.size()) && path[size_t(t)] == k; ++t) {
      const double posterior = lattice.posteriors[size_t(t * c.C + k)];
      weight += posterior;
      weighted += posterior * p[size_t(t)][size_t(k)];
    }
    if (k == c.blank) continue;
    const double mean = std::min(weighted / weight, 1.0);
    const int64_t i = at * c.T + int64_t(label++);
    if (out.starts[i] == start && out.ends[i] == t && std::fabs(out.confidence[i] - mean) < 1e-4) continue;
    std::printf("token %d of result %d: frames %d to %d, %g, should be %d to %d, %g; ", int(label - 1), int(at),
                int(out.starts[i]), int(out.ends[i]), double(out.confidence[i]), int(start), int(t), mean);
    return false;
  }
  return true;
}

bool agree(const Case& c, int64_t n, const std::vector<Row>& p, const std::vector<Result>& expected, Out& out) {
  std::map<Prefix, Result> wanted;
  for (const Result& r : expected) wanted[r.tokens] = r;
  bool good = true;
  for (int64_t k = 0; k < c.beam; ++k) {
    const int64_t at = n * c.beam + k, length = out.lengths[at];
    if (k >= int64_t(expected.size())) {
      good = good && length == 0 && out.scores[at] == -reference::kInfinity && out.lm_scores[at] == 0;
      continue;
    }
    Prefix tokens;
    for (int64_t i = 0; i < c.T; ++i) {
      if (i < length) tokens.push_back(int32_t(out.tokens[at * c.T + i]));
      if (i >= length)
        good = good && out.tokens[at * c.T + i] == c.blank && out.starts[at * c.T + i] == 0 &&
               out.ends[at * c.T + i] == 0 && out.confidence[at * c.T + i] == 0;
    }
    const auto found = wanted.find(tokens);
    good = good && found != wanted.end() && std::fabs(out.scores[at] - found->second.score) < 1e-4 &&
           std::fabs(out.lm_scores[at] - found->second.lm_score) < 1e-4;
    if (c.spread == 0) good = good && tokens == expected[size_t(k)].tokens;
    if (!good) {
      std::printf("result %d of row %d; ", int(k), int(n));
      return false;
    }
    wanted.erase(found);
    // what reads NaN has no best path
    if (c.spread > 0 && !c.faults && !times_agree(c, p, tokens, out, at)) return false;
  }
  if (!good) std::printf("what row %d has no result for; ", int(n));
  return good;
}

bool run(const Case& c) {
  Random random(uint64_t(c.T * 31 + c.C * 7 + c.beam));
  Buffer<float> scores(c.N * c.T * c.C);
  for (int64_t i = 0; i < scores.size(); ++i)
    scores[i] = float(c.spread * (random.uniform() + random.uniform() + random.uniform() - 1.5 - !c.logits));
  if (c.faults) {
    for (int64_t k = 0; k < c.C; ++k) scores[3 * c.C + k] = -HUGE_VALF;  // row 0, frame 3
    scores[(c.T + 2) * c.C + 1] = NAN;                                   // row 1, frame 2
  }
  Buffer<int64_t> lengths(c.N);
  for (int64_t n = 0; n < c.N; ++n) lengths[n] = std::max<int64_t>(0, c.T - 4 * n);
  if (c.faults) lengths[2] = c.T + 1, lengths[3] = -1, lengths[4] = 0;

  const Hotwords hotwords(c);
  fastctc::BeamAlignCudaParams align;
  fastctc::BeamSearchCudaParams& p = align.search;
  p.shape = {fastctc::DType::float32, c.N, c.T, c.C, c.beam, c.top_k, c.hotwords};
  p.scores = scores.data();
  p.scores_stride_n = c.T * c.C;
  p.scores_stride_t = c.C;
  p.lengths = lengths.data();
  p.blank = c.blank;
  p.from_logits = c.logits;
  p.beam_threshold = c.threshold;
  p.top_p = c.top_p;
  p.blank_skip_threshold = c.skip;
  p.fusion = c.hotwords ? &hotwords.view : nullptr;
  Buffer<char> scratch(fastctc::beam_search_cuda_scratch_bytes(p.shape));
  std::memset(scratch.data(), 0, size_t(scratch.size()));  // no memory looks like free nodes by chance
  Out out(c.N * c.beam, c.T);
  p.scratch = scratch.data();
  p.nbest = c.beam;
  p.tokens = out.tokens.data();
  p.token_lengths = out.lengths.data();
  p.final_scores = out.scores.data();
  p.lm_scores = out.lm_scores.data();
  align.max_tokens = c.max_tokens ? c.max_tokens : c.T;
  align.max_bytes = c.align_bytes;
  align.starts = out.starts.data();
  align.ends = out.ends.data();
  align.confidence = out.confidence.data();
  Buffer<char> align_scratch(fastctc::beam_align_cuda_scratch_bytes(align));
  if (align_scratch.size() > c.align_bytes) {
    std::printf("%d bytes for the alignment; ", int(align_scratch.size()));
    return false;
  }
  align.scratch = align_scratch.data();
  if (fastctc::beam_search_cuda(p) != 0 || fastctc::beam_align_cuda(align) != 0) {
    std::printf("a launch failed; ");
    return false;
  }
  bool good = true;
  for (int64_t n = 0; n < c.N && good; ++n) {
    std::vector<Row> frames;
    bool valid = lengths[n] >= 0 && lengths[n] <= c.T;
    for (int64_t t = 0; valid && t < lengths[n]; ++t) {
      Row row;
      double sum = 0;
      for (int64_t k = 0; k < c.C; ++k) {
        row.push_back(std::exp(double(scores[(n * c.T + t) * c.C + k])));
        if (!c.logits && std::isnan(row.back())) row.back() = 0;
        sum += row.back();
      }
      for (double& x : row)
        if (c.logits) x /= sum;
      valid = sum > 0;
      frames.push_back(row);
    }
    good = agree(c, n, frames, valid ? search(c, frames, p.fusion) : std::vector<Result>(), out);
  }
  return good;
}

std::vector<Case> cases() {
  std::vector<Case> all;
  const auto add = [&](const char* name, int64_t T, int64_t N, int64_t C, int64_t beam) -> Case& {
    all.push_back(Case{name, T, N, C, beam});
    return all.back();
  };
  add("few_classes", 14, 3, 6, 8);
  add("one_prefix", 9, 1, 5, 1);
  add("a_warp_of_prefixes", 9, 2, 40, 32).blank = 39;
  // the buffer of a frame's best classes is sorted several times
  add("many_classes", 5, 1, 900, 10);
  add("many_classes_many_prefixes", 2, 1, 700, 100);
  add("several_warps", 9, 1, 29, 70).blank = 28;
  Case& pruned = add("pruned", 20, 2, 12, 9);
  pruned.logits = false;
  pruned.top_k = 5;
  pruned.top_p = 0.2;
  pruned.threshold = 3;
  add("nucleus", 12, 2, 12, 9).top_p = 0.9;
  Case& skips = add("blank_skipped", 24, 1, 4, 8);
  skips.skip = 0.6;
  skips.blank = 2;
  add("many_frames", 150, 1, 3, 6).spread = 1;
  // prefixes that leave come back, to be the parents of those that have stayed
  add("prefixes_come_back", 12, 1, 3, 5).spread = 6;
  add("equal_scores", 5, 1, 4, 9).spread = 0;
  // of equal ones, prefixes in the beam lose to new ones
  add("equal_scores_in_the_beam", 5, 1, 3, 4).spread = 0;
  add("equal_scores_and_no_room", 4, 1, 40, 30).spread = 0;
  add("equal_scores_in_several_warps", 4, 1, 40, 50).spread = 0;
  add("hotwords", 12, 2, 6, 9).hotwords = true;
  add("hotwords_several_warps", 8, 1, 12, 40).hotwords = true;
  Case& faults = add("faults", 8, 5, 5, 6);
  faults.faults = true;
  faults.logits = false;
  // so few frames that segments would take no less memory
  add("results_take_turns", 6, 4, 5, 4).align_bytes = 8000;
  add("results_in_segments", 16, 2, 5, 4).align_bytes = 9000;
  add("results_of_an_utterance_take_turns", 16, 2, 5, 5).align_bytes = 5000;
  Case& global = add("states_in_global_memory", 12, 1, 5, 3);
  global.max_tokens = 1600;
  return all;
}

}  // namespace

int main(int argc, char** argv) { return runner::run_cases(argc, argv, cases(), run); }
