#include "beam_search_fusion.h"

#include <cstring>

#include "cpu/table_block.h"

namespace fastctc {
namespace {

static_assert(sizeof(FusionState) == BeamFusion::kStateInts * sizeof(int32_t), "a beam's slot keeps another state");

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

double extend(const void* self, const int32_t* ints, int32_t token, int32_t* next) {
  FusionState after;
  const float bonus = fusion_extend(view_of(self), state_of(ints), token, &after);
  std::memcpy(next, &after, sizeof after);
  return bonus;
}

double largest_bonus(const void* self, const int32_t* ints) {
  return fusion_largest_bonus(view_of(self), state_of(ints));
}

void largest_bonuses(const void* self, const int32_t* ints, int32_t classes, float* bonuses) {
  const FusionState state = state_of(ints);
  for (int32_t token = 0; token < classes; ++token) {
    bonuses[token] = fusion_largest_bonus(view_of(self), state, token);
  }
}

double finish(const void* self, const int32_t* ints) { return fusion_finish(view_of(self), state_of(ints)); }

}  // namespace

BeamFusion beam_fusion(const FusionView& view, const void* bonus_rows) {
  BonusRows rows{};
  if (bonus_rows != nullptr) {
    const auto h = table_header<BonusRowsHeader>(bonus_rows, TableKind::bonus_rows, "the rows of bonuses");
    rows.ngram = table_array<float>(bonus_rows, h.ngram_at);
    rows.symbols = table_array<float>(bonus_rows, h.symbols_at);
    rows.ngram_stride = h.ngram_rows > 1 ? h.columns : 0;
    rows.symbols_stride = h.symbol_rows > 1 ? h.columns : 0;
    rows.boundaries = table_array<int32_t>(bonus_rows, h.boundaries_at);
    rows.boundary_count = h.boundaries;
  }
  return {&view, start, extend, largest_bonus, largest_bonuses, rows, finish};
}

}  // namespace fastctc
