#include "output_memory.h"

#include <cstddef>
#include <mutex>
#include <new>
#include <vector>

#include "workspace.h"

namespace fastctc {
namespace {

constexpr std::align_val_t kAlign{size_t(2) << 20};  // that of huge pages, so that none is cut at an end

struct Piece {
  void* memory;
  int64_t bytes;
};

// Leaked on purpose, as results outlive everything at the end of a process. After a fork the child may find the lock
// taken for good: every use tries it and does without.
struct Kept {
  std::mutex mutex;
  std::vector<Piece> pieces;  // oldest first
  int64_t bytes = 0;
};
Kept& kept() {
  static Kept* instance = new Kept;
  return *instance;
}

void release(const Piece& piece) { ::operator delete(piece.memory, kAlign); }

}  // namespace

void* take_output_memory(int64_t bytes) {
  Kept& all = kept();
  if (std::unique_lock<std::mutex> lock(all.mutex, std::try_to_lock); lock) {
    // The last that was given back is the one most likely in a cache.
    for (size_t i = all.pieces.size(); i-- > 0;)
      if (all.pieces[i].bytes == bytes) {
        void* memory = all.pieces[i].memory;
        all.pieces.erase(all.pieces.begin() + std::ptrdiff_t(i));
        all.bytes -= bytes;
        return memory;
      }
  }
  void* memory = ::operator new(size_t(bytes), kAlign);
  prefer_huge_pages(memory, bytes);
  return memory;
}

void give_back_output_memory(void* memory, int64_t bytes) noexcept {
  const Piece piece{memory, bytes};
  Kept& all = kept();
  std::unique_lock<std::mutex> lock(all.mutex, std::try_to_lock);
  if (!lock || bytes > kKeptOutputBytes) return release(piece);
  try {
    all.pieces.push_back(piece);
  } catch (const std::bad_alloc&) {
    return release(piece);
  }
  all.bytes += bytes;
  while (all.bytes > kKeptOutputBytes) {
    all.bytes -= all.pieces.front().bytes;
    release(all.pieces.front());
    all.pieces.erase(all.pieces.begin());
  }
}

}  // namespace fastctc
