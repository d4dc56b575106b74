// A language model, lexicon and hotwords as the beam kernels call them.
#pragma once

#include "beam_search_kernel.h"
#include "core/fusion.h"

namespace fastctc {

// Calls into `view`, and reads what make_bonus_rows has made of it (null: nothing); both must live as long.
BeamFusion beam_fusion(const FusionView& view, const void* bonus_rows);

}  // namespace fastctc
