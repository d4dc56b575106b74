// Scratch memory of the host kernels, kept between calls: fresh pages cost more than the arithmetic done in them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace fastctc {

class Workspace {
 public:
  explicit Workspace(int64_t bytes);
  void* data() const { return data_.get(); }  // 64-byte aligned
  int64_t bytes() const { return bytes_; }

 private:
  struct Free {
    void operator()(void* p) const;
  };
  std::unique_ptr<void, Free> data_;
  int64_t bytes_;
};

// `count` pieces of at least `bytes` each. Throws std::bad_alloc.
std::vector<Workspace> take_workspaces(int count, int64_t bytes);

// Keeps them for later calls as long as what is kept stays small (32 MiB in all).
void give_back_workspaces(std::vector<Workspace> pieces);

// Asks the system to back a large output with huge pages where it can; the content is not touched.
void prefer_huge_pages(void* p, int64_t bytes);

}  // namespace fastctc
