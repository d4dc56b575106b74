// Memory of large results, kept between calls: fetching fresh pages from the system takes longer than filling them.
#pragma once

#include <cstdint>

namespace fastctc {

// At least `bytes`, aligned to 64 bytes, in huge pages where the system has them. The content is anything. Throws
// std::bad_alloc. Safe to call from many threads at once, and after a fork.
void* take_output_memory(int64_t bytes);

// Keeps what take_output_memory gave for as many bytes, as long as all that is kept stays within kKeptOutputBytes.
void give_back_output_memory(void* memory, int64_t bytes) noexcept;

constexpr int64_t kKeptOutputBytes = int64_t(512) << 20;

}  // namespace fastctc
