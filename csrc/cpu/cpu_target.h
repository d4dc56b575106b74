#pragma once

#include "ctc_loss_kernel.h"

namespace fastctc {

// The kernels of the target in use; see fastctc/cpu_target.h for how it is chosen.
const CtcLossKernels& ctc_loss_kernels();

}  // namespace fastctc
