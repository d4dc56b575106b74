// What every operator on a batch of targets does before its kernel runs: find each row's labels, and share the rows out
// among threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <numeric>
#include <vector>

#include "fastctc/ctc_loss.h"
#include "thread_pool.h"
#include "workspace.h"

namespace fastctc {

inline int64_t size_of(DType dtype) { return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2; }

// The first label of each row. Params have the members of CtcLossParams that are used here.
template <class Params>
std::vector<const int64_t*> label_rows(const Params& p) {
  std::vector<const int64_t*> rows(p.N);
  const int64_t* next = p.targets;
  for (int64_t n = 0; n < p.N; ++n) {
    rows[n] = p.targets_stride ? p.targets + n * p.targets_stride : next;
    next += p.targets_stride ? 0 : p.target_lengths[n];
  }
  return rows;
}

// Which thread takes which rows, and when.
class RowSchedule {
 public:
  // cost(row) is compared only.
  template <class Cost>
  RowSchedule(int64_t rows, int num_threads, Cost cost)
      : order_(size_t(rows)), threads_(int(std::min<int64_t>(std::max(num_threads, 1), rows))) {
    std::iota(order_.begin(), order_.end(), int64_t(0));
    // a chunk of neighbours keeps threads off each other's cache lines; few rows go one by one, the longest first
    chunk_ = std::max<int64_t>(1, rows / (8 * int64_t(threads_)));
    if (threads_ > 1 && chunk_ == 1)
      std::stable_sort(order_.begin(), order_.end(), [&](int64_t a, int64_t b) { return cost(a) > cost(b); });
  }

  int threads() const { return threads_; }

  // Calls work(row, workspace) for every row, with workspace_bytes at hand, while each thread holds a ThreadState. The
  // memory is had before any work starts, so that no thread can run short half way.
  template <class ThreadState, class Work>
  void run(int64_t workspace_bytes, Work work) const {
    std::vector<Workspace> workspaces = take_workspaces(threads_, workspace_bytes);
    std::atomic<int64_t> next{0};
    const int64_t rows = int64_t(order_.size());
    run_on_threads(threads_, [&](int thread) {
      const ThreadState state;
      (void)state;
      void* workspace = workspaces[size_t(thread)].data();
      for (int64_t i; (i = next.fetch_add(chunk_)) < rows;)
        for (int64_t k = i; k < std::min(i + chunk_, rows); ++k) work(order_[size_t(k)], workspace);
    });
    give_back_workspaces(std::move(workspaces));
  }

 private:
  std::vector<int64_t> order_;
  int threads_;
  int64_t chunk_;
};

}  // namespace fastctc
