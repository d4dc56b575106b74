// A language model, lexicon and hotwords as the beam kernels call them.
#pragma once

#include "beam_search_kernel.h"
#include "core/fusion.h"

namespace fastctc {

// Calls into `view`, which must live as long.
BeamFusion beam_fusion(const FusionView& view);

}  // namespace fastctc
