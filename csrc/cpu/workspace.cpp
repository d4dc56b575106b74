#include "workspace.h"

#include <algorithm>
#include <mutex>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace fastctc {
namespace {

constexpr std::align_val_t kAlign{64};
constexpr int64_t kKeptBytes = int64_t(32) << 20;
constexpr int64_t kHugePage = int64_t(2) << 20;

// Leaked on purpose, so that threads of a dying process can still return to it. After a fork the child may find the
// lock taken for good: every use tries it and does without.
struct Kept {
  std::mutex mutex;
  std::vector<Workspace> pieces;
};
Kept& kept() {
  static Kept* instance = new Kept;
  return *instance;
}

}  // namespace

Workspace::Workspace(int64_t bytes)
    : data_(::operator new(size_t(std::max<int64_t>(bytes, 64)), kAlign)), bytes_(bytes) {
  prefer_huge_pages(data_.get(), bytes);
}

void Workspace::Free::operator()(void* p) const { ::operator delete(p, kAlign); }

std::vector<Workspace> take_workspaces(int count, int64_t bytes) {
  std::vector<Workspace> taken;
  taken.reserve(size_t(count));
  {
    std::unique_lock<std::mutex> lock(kept().mutex, std::try_to_lock);
    if (lock) {
      std::vector<Workspace>& pieces = kept().pieces;
      for (size_t i = pieces.size(); i-- > 0 && int(taken.size()) < count;)
        if (pieces[i].bytes() >= bytes) {
          taken.push_back(std::move(pieces[i]));
          pieces.erase(pieces.begin() + std::ptrdiff_t(i));
        }
    }
  }
  while (int(taken.size()) < count) taken.emplace_back(bytes);
  return taken;
}

void give_back_workspaces(std::vector<Workspace> pieces) {
  std::unique_lock<std::mutex> lock(kept().mutex, std::try_to_lock);
  if (!lock) return;
  std::vector<Workspace>& all = kept().pieces;
  try {
    all.reserve(all.size() + pieces.size());
  } catch (const std::bad_alloc&) {  // the results are there already: let the pieces go
    return;
  }
  // they are taken from the back: last in is the calling thread's, which so finds it in its core's caches next time
  for (size_t i = pieces.size(); i-- > 0;) all.push_back(std::move(pieces[i]));
  int64_t total = 0;
  for (const Workspace& piece : all) total += piece.bytes();
  // the smallest go first: a larger one serves every call they could
  std::stable_sort(all.begin(), all.end(),
                   [](const Workspace& a, const Workspace& b) { return a.bytes() < b.bytes(); });
  while (total > kKeptBytes || all.size() > 64) {
    // one that alone is above the limit is not kept at all
    auto victim = all.back().bytes() > kKeptBytes ? all.end() - 1 : all.begin();
    total -= victim->bytes();
    all.erase(victim);
  }
}

void prefer_huge_pages(void* p, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t first = (reinterpret_cast<uintptr_t>(p) + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(p) + uintptr_t(bytes)) / kHugePage * kHugePage;
  // refused where the kernel has no huge pages: then small ones serve
  if (end > first) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#else
  (void)p;
  (void)bytes;
#endif
}

}  // namespace fastctc
