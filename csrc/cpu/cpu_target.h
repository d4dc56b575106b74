#pragma once

#include "beam_search_kernel.h"
#include "ctc_loss_kernel.h"
#include "forced_align_kernel.h"
#include "spectrogram_norm_kernel.h"

namespace fastctc {

// The kernels of the target in use; see fastctc/cpu_target.h for how it is chosen.
const CtcLossKernels& ctc_loss_kernels();
const ForcedAlignKernels& forced_align_kernels();
const NormKernels& spectrogram_norm_kernels();
const BeamKernels& beam_kernels();

}  // namespace fastctc
