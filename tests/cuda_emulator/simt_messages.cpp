#include <cstdio>

#include "simt_state.h"

namespace fastctc {
namespace simt {

const char* name_of(WarpKind kind) {
  static const char* const names[] = {
      "__syncwarp",        "__shfl_sync",       "__shfl_up_sync",    "__shfl_down_sync",  "__shfl_xor_sync",
      "__ballot_sync",     "__any_sync",        "__all_sync",        "__match_any_sync",  "__reduce_add_sync",
      "__reduce_min_sync", "__reduce_max_sync", "__reduce_min_sync", "__reduce_max_sync", "__reduce_and_sync",
      "__reduce_or_sync",  "__reduce_xor_sync"};
  return names[static_cast<int>(kind)];
}

std::string hex(unsigned mask) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%08x", mask);
  return text;
}
std::string text_of(uint3 index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}
std::string site(const char* file, int line) {
  const char* slash = std::strrchr(file, '/');
  return std::string(slash ? slash + 1 : file) + ":" + std::to_string(line);
}
std::string kernel_name() {
  int depth = 0;
  const char* end = launched->call;
  for (; *end && !(*end == ',' && depth == 0); ++end) {
    if (*end == '<' || *end == '(' || *end == '{') ++depth;
    if (*end == '>' || *end == ')' || *end == '}') --depth;
  }
  return std::string(launched->call, end) + " launched at " + site(launched->file, launched->line);
}
std::string thread_name(const Thread& thread) {
  return "thread " + text_of(thread.index) + " (lane " + std::to_string(linear(&thread) % kWarp) + " of warp " +
         std::to_string(linear(&thread) / kWarp) + ")";
}
std::string where() { return "CUDA emulator: kernel " + kernel_name() + ", block " + text_of(blockIdx); }

std::string activity(const Thread& thread) {
  const std::string place = " at " + site(thread.file, thread.line);
  switch (thread.state) {
    case State::ready:
      return "ready";
    case State::block_barrier:
      return "in __syncthreads" + place;
    case State::named_barrier:
      return "in bar_sync(" + std::to_string(thread.barrier) + ", " + std::to_string(thread.barrier_threads) + ")" +
             place;
    case State::warp:
      return std::string("in ") + name_of(thread.warp_kind) + " with mask " + hex(thread.mask) + place;
    case State::exited:
      return "exited";
  }
  return "";
}

// What each range of threads does, equal neighbours together.
std::string roll_call() {
  constexpr int kMaxLines = 12;
  std::string text;
  int lines = 0;
  for (unsigned first = 0; first < block.threads;) {
    const std::string what = activity(threads[first]);
    unsigned end = first + 1;
    while (end < block.threads && activity(threads[end]) == what) ++end;
    if (++lines > kMaxLines) return text + "; ...";
    text += first ? "; " : " ";
    text += end - first > 1 ? "threads " + std::to_string(first) + " to " + std::to_string(end - 1)
                            : "thread " + std::to_string(first);
    text += " " + what;
    first = end;
  }
  return text;
}

}  // namespace simt
}  // namespace fastctc
