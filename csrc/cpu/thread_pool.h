// The library's own threads: no second OpenMP beside the one of torch, and usable after a fork.
#pragma once

#include <functional>

namespace fastctc {

// Calls work(k) on the calling thread, with k = 0, and on up to `threads` - 1 others, with a different k > 0 for each,
// and returns when all calls have. Each call is expected to draw its share from a common counter. Where the pool is at
// work for another caller, or threads cannot be had, the calling thread does it all. work() must not throw.
void run_on_threads(int threads, const std::function<void(int)>& work);

}  // namespace fastctc
