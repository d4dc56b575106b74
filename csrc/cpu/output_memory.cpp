#include "output_memory.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <limits>
#include <mutex>
#include <new>
#include <vector>

#include "workspace.h"

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#endif

namespace fastctc {
namespace {

constexpr int64_t kHugePage = int64_t(2) << 20;

// Leaked on purpose, as results outlive everything at the end of a process. After a fork the child may find the lock
// taken for good: results try it and do without, and who asks for something waits no longer than kPatience.
struct Kept {
  std::timed_mutex mutex;
  std::vector<OutputMemory> pieces;  // oldest first
  int64_t bytes = 0;
  std::atomic<int64_t> most{int64_t(512) << 20};
};
Kept& kept() {
  static Kept* instance = new Kept;
  return *instance;
}
constexpr std::chrono::seconds kPatience{1};

#if defined(__unix__) || defined(__APPLE__)
// Mapped apart from the heap, which aligned pieces would leave holes in. nullptr where there is no memory.
void* fetch(int64_t bytes) {
  const size_t mapped = size_t(bytes + kHugePage);
  void* start = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED) return nullptr;
  char* const first = static_cast<char*>(start);
  const size_t before = size_t(-reinterpret_cast<uintptr_t>(start)) % size_t(kHugePage);
  const size_t after = size_t(kHugePage) - before;
  if (before > 0) munmap(first, before);
  munmap(first + mapped - after, after);
  return first + before;
}

void release(const OutputMemory& piece) { munmap(piece.data, size_t(piece.bytes)); }
#else
constexpr std::align_val_t kAlign{size_t(kHugePage)};

void* fetch(int64_t bytes) { return ::operator new(size_t(bytes), kAlign, std::nothrow); }

void release(const OutputMemory& piece) { ::operator delete(piece.data, kAlign); }
#endif

// With the lock held.
void release_beyond(Kept& all, int64_t most) {
  auto piece = all.pieces.begin();
  for (; all.bytes > most; ++piece) {
    all.bytes -= piece->bytes;
    release(*piece);
  }
  all.pieces.erase(all.pieces.begin(), piece);
}

// The smallest kept piece of `bytes` to a quarter more, or none.
OutputMemory take_kept(Kept& all, int64_t bytes) {
  std::unique_lock<std::timed_mutex> lock(all.mutex, std::try_to_lock);
  if (!lock) return {nullptr, 0};
  auto best = all.pieces.end();
  for (auto piece = all.pieces.begin(); piece != all.pieces.end(); ++piece) {
    const bool fits = piece->bytes >= bytes && piece->bytes <= bytes + bytes / 4;
    // Of equal ones the last that was given back: it is the one most likely in a cache.
    if (fits && (best == all.pieces.end() || piece->bytes <= best->bytes)) best = piece;
  }
  if (best == all.pieces.end()) return {nullptr, 0};
  const OutputMemory memory = *best;
  all.pieces.erase(best);
  all.bytes -= memory.bytes;
  return memory;
}

}  // namespace

OutputMemory take_output_memory(int64_t bytes) {
  if (bytes > std::numeric_limits<int64_t>::max() - 2 * kHugePage) throw std::bad_alloc();
  bytes = (std::max<int64_t>(bytes, 1) + kHugePage - 1) / kHugePage * kHugePage;
  Kept& all = kept();
  if (const OutputMemory memory = take_kept(all, bytes); memory.data) return memory;
  void* data = fetch(bytes);
  if (!data) {
    if (std::unique_lock<std::timed_mutex> lock(all.mutex, kPatience); lock) release_beyond(all, 0);
    data = fetch(bytes);
  }
  if (!data) throw std::bad_alloc();
  prefer_huge_pages(data, bytes);
  return {data, bytes};
}

void give_back_output_memory(OutputMemory memory) noexcept {
  Kept& all = kept();
  std::unique_lock<std::timed_mutex> lock(all.mutex, std::try_to_lock);
  const int64_t most = all.most;
  if (!lock || memory.bytes > most) return release(memory);
  try {
    all.pieces.push_back(memory);
  } catch (const std::bad_alloc&) {
    return release(memory);
  }
  all.bytes += memory.bytes;
  release_beyond(all, most);
}

void set_max_kept_output_mb(int64_t mb) {
  Kept& all = kept();
  all.most = std::clamp<int64_t>(mb, 0, int64_t(1) << 40) << 20;
  if (std::unique_lock<std::timed_mutex> lock(all.mutex, kPatience); lock) release_beyond(all, all.most);
}

int64_t max_kept_output_mb() { return kept().most >> 20; }

int64_t kept_output_bytes() {
  Kept& all = kept();
  std::unique_lock<std::timed_mutex> lock(all.mutex, kPatience);
  return lock ? all.bytes : 0;
}

}  // namespace fastctc
