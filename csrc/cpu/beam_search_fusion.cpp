#include "beam_search_fusion.h"

#include <cmath>
#include <cstring>

namespace fastctc {
namespace {

constexpr int kStateInts = sizeof(FusionState) / sizeof(int32_t);
static_assert(kStateInts <= BeamFusion::kMaxStateInts, "a beam's slot has no room for the state");

const FusionView& view_of(const void* self) { return *static_cast<const FusionView*>(self); }

FusionState state_of(const int32_t* ints) {
  FusionState state;
  std::memcpy(&state, ints, sizeof state);
  return state;
}

void start(const void* self, int32_t* ints) {
  const FusionState state = fusion_start(view_of(self));
  std::memcpy(ints, &state, sizeof state);
}

bool extend(const void* self, const int32_t* ints, int32_t token, int32_t* next, double* bonus) {
  FusionState after;
  *bonus = fusion_extend(view_of(self), state_of(ints), token, &after);
  std::memcpy(next, &after, sizeof after);
  return *bonus > -HUGE_VAL;
}

double largest_bonus(const void* self, const int32_t* ints) {
  return fusion_largest_bonus(view_of(self), state_of(ints));
}

double finish(const void* self, const int32_t* ints) { return fusion_finish(view_of(self), state_of(ints)); }

}  // namespace

BeamFusion beam_fusion(const FusionView& view) { return {&view, kStateInts, start, extend, largest_bonus, finish}; }

}  // namespace fastctc
