// Memory of large results, kept between calls: fetching fresh pages from the system takes longer than filling them.
#pragma once

#include <cstdint>

namespace fastctc {

struct OutputMemory {
  void* data;
  int64_t bytes;  // whole huge pages
};

// At least `bytes`, aligned to 2 MiB, in huge pages where the system has them. The content is anything. Where the
// system has no more, all that is kept is released first; throws std::bad_alloc where that does not help. Safe to call
// from many threads at once, and after a fork.
OutputMemory take_output_memory(int64_t bytes);

// Keeps what take_output_memory gave; the oldest pieces go where all that is kept would pass the bound.
void give_back_output_memory(OutputMemory memory) noexcept;

// The bound, 512 at first; 0 keeps nothing. What is kept beyond it is released.
void set_max_kept_output_mb(int64_t mb);
int64_t max_kept_output_mb();
int64_t kept_output_bytes();

}  // namespace fastctc
