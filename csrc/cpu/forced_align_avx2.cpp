#include "forced_align_run.h"

FASTCTC_DEFINE_FORCED_ALIGN_KERNELS(forced_align_kernels_avx2, 8)
