// Plain C++ only: see ctc_loss_portable.cpp.
#define FASTCTC_SIMD_ARRAY
#include "forced_align_run.h"

FASTCTC_DEFINE_FORCED_ALIGN_KERNELS(forced_align_kernels_portable, 4)
