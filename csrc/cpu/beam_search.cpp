#include "fastctc/beam_search.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <exception>
#include <mutex>
#include <numeric>
#include <stdexcept>

#include "batch.h"
#include "beam_search_align.h"
#include "beam_search_fusion.h"
#include "beam_search_kernel.h"
#include "cpu_target.h"
#include "flush_denormals.h"
#include "simd/carver.h"
#include "thread_pool.h"
#include "workspace.h"

namespace fastctc {
namespace {

BeamTrie lay_out_trie(Carver& carve, int64_t capacity) {
  const auto field = [&] { return carve.take<int32_t>(capacity); };
  return {field(), field(), field(), field(), field(), field(), field(), 0, capacity};
}

int64_t trie_bytes(int64_t capacity) {
  Carver measured{nullptr};
  lay_out_trie(measured, capacity);
  return measured.used;
}

BeamTrie trie_in(const Workspace& memory, int64_t capacity) {
  Carver carve{static_cast<char*>(memory.data())};
  return lay_out_trie(carve, capacity);
}

void copy_nodes(const BeamTrie& from, BeamTrie& to) {
  int32_t* BeamTrie::* const fields[] = {&BeamTrie::parent,      &BeamTrie::token,        &BeamTrie::depth,
                                         &BeamTrie::first_child, &BeamTrie::next_sibling, &BeamTrie::slot};
  for (auto field : fields) std::memcpy(to.*field, from.*field, size_t(from.count) * sizeof(int32_t));
  to.count = from.count;
}

Workspace take_one(int64_t bytes) {
  std::vector<Workspace> pieces = take_workspaces(1, bytes);
  return std::move(pieces.front());
}

BeamState new_state(const BeamSearchOptions& o, DType dtype, const BeamFusion* fusion) {
  BeamState state{};
  state.options = {o.C,           o.blank, o.beam_size, o.top_k, o.top_p, o.beam_threshold, o.blank_skip_threshold,
                   o.from_logits, fusion};
  state.dtype = int(dtype);
  return state;
}

// Where `count` more go.
double* extend(std::vector<double>& numbers, int64_t count) {
  numbers.resize(numbers.size() + size_t(count));
  return numbers.data() + numbers.size() - size_t(count);
}

// What one token adds is a factor of a scaled mass in the search.
void refuse_bonus(double bonus, bool wide) {
  char text[200];
  std::snprintf(text, sizeof text,
                "language model, words and hotwords add %.6g nats to a score by one token: with %s emissions it must "
                "be at most %d",
                bonus, wide ? "float64" : "float32, float16 or bfloat16", wide ? 700 : 80);
  throw std::range_error(text);
}

}  // namespace

struct BeamSearch::Impl {
  const BeamKernels& kernels;
  const BeamFusion fusion;
  BeamState state;
  Workspace workspace;
  Workspace trie_memory;
  const bool timesteps, confidence;
  std::vector<double> largest, log_normalisers;

  Impl(const BeamSearchOptions& options, DType dtype)
      : kernels(beam_kernels()),
        fusion(options.fusion ? beam_fusion(*options.fusion, options.bonus_rows) : BeamFusion{}),
        state(new_state(options, dtype, options.fusion ? &fusion : nullptr)),
        workspace(take_one(kernels.workspace_bytes(state))),
        trie_memory(take_one(trie_bytes(16 * options.beam_size + 512))),
        timesteps(options.timesteps),
        confidence(options.confidence) {
    state.workspace = workspace.data();
    state.trie = trie_in(trie_memory, 16 * options.beam_size + 512);
  }

  ~Impl() {
    try {
      std::vector<Workspace> pieces;
      pieces.push_back(std::move(workspace));
      pieces.push_back(std::move(trie_memory));
      give_back_workspaces(std::move(pieces));
    } catch (const std::bad_alloc&) {  // then they are freed
    }
  }

  void grow_trie() {
    const int64_t capacity = 2 * state.trie.capacity;
    Workspace larger = take_one(trie_bytes(capacity));
    BeamTrie trie = trie_in(larger, capacity);
    copy_nodes(state.trie, trie);
    state.trie = trie;
    std::swap(trie_memory, larger);
  }

  BeamResult result(const BeamHypothesis& hypothesis) const {
    BeamResult r;
    r.score = hypothesis.score;
    r.lm_score = hypothesis.lm_score;
    int32_t node = hypothesis.node;
    r.tokens.resize(size_t(state.trie.depth[node]));
    for (size_t i = r.tokens.size(); i-- > 0; node = state.trie.parent[node]) r.tokens[i] = state.trie.token[node];
    return r;
  }
};

BeamSearch::BeamSearch(const BeamSearchOptions& options, DType dtype) : impl_(new Impl(options, dtype)) { restart(); }

BeamSearch::~BeamSearch() = default;

void BeamSearch::restart() {
  impl_->kernels.start(impl_->state);
  impl_->largest.clear();
  impl_->log_normalisers.clear();
}

void BeamSearch::advance(const void* scores, int64_t stride, int64_t frames) {
  const int64_t bytes = stride * size_of(static_cast<DType>(impl_->state.dtype));
  const char* rows = static_cast<const char*>(scores);
  if (impl_->timesteps) impl_->state.largest = extend(impl_->largest, frames);
  if (impl_->confidence && impl_->state.options.from_logits)
    impl_->state.log_normalisers = extend(impl_->log_normalisers, frames);
  for (;;) {
    int64_t taken;
    {
      const FlushDenormals flush;
      taken = impl_->kernels.advance(impl_->state, rows, stride, frames);
    }
    rows += taken * bytes;
    frames -= taken;
    if (impl_->state.largest) impl_->state.largest += taken;
    if (impl_->state.log_normalisers) impl_->state.log_normalisers += taken;
    if (impl_->state.excessive_bonus > 0)
      refuse_bonus(impl_->state.excessive_bonus, impl_->state.dtype == int(DType::float64));
    if (frames == 0) return;
    impl_->grow_trie();
  }
}

BeamResults BeamSearch::best(int64_t nbest) {
  std::vector<BeamHypothesis> found(size_t(std::min(nbest, impl_->state.options.beam_size)));
  const int64_t count = impl_->kernels.best(impl_->state, int64_t(found.size()), found.data());
  BeamResults results;
  results.reserve(size_t(count));
  for (int64_t i = 0; i < count; ++i) results.push_back(impl_->result(found[size_t(i)]));
  return results;
}

void BeamSearch::align(const void* scores, int64_t stride, int64_t frames, BeamResults& results) const {
  if (!impl_->timesteps) return;
  const BeamOptions& o = impl_->state.options;
  const BeamEmissions emissions{scores,
                                static_cast<DType>(impl_->state.dtype),
                                stride,
                                frames,
                                o.C,
                                o.blank,
                                impl_->largest.data(),
                                o.from_logits && impl_->confidence ? impl_->log_normalisers.data() : nullptr};
  for (BeamResult& result : results) align_result(emissions, impl_->confidence, result);
}

std::vector<BeamResults> beam_search_cpu(const BeamSearchParams& p) {
  std::vector<BeamResults> results(size_t(p.N));
  std::vector<int64_t> order(size_t(p.N));
  std::iota(order.begin(), order.end(), int64_t(0));
  const int threads = int(std::min<int64_t>(std::max(p.num_threads, 1), p.N));
  if (threads > 1)
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return p.lengths[a] > p.lengths[b]; });
  std::atomic<int64_t> next{0};
  std::mutex mutex;
  std::exception_ptr failure;
  run_on_threads(threads, [&](int) {
    try {
      std::unique_ptr<BeamSearch> beam;
      for (int64_t i; (i = next.fetch_add(1)) < p.N;) {
        const size_t n = size_t(order[size_t(i)]);
        if (beam)
          beam->restart();
        else
          beam.reset(new BeamSearch(p.options, p.dtype));
        const char* rows = static_cast<const char*>(p.scores) + int64_t(n) * p.scores_stride_n * size_of(p.dtype);
        beam->advance(rows, p.scores_stride_t, p.lengths[n]);
        results[n] = beam->best(p.nbest);
        beam->align(rows, p.scores_stride_t, p.lengths[n], results[n]);
      }
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      failure = std::current_exception();
    }
  });
  if (failure) std::rethrow_exception(failure);
  return results;
}

}  // namespace fastctc
