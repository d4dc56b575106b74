// Plain C++ only, as in ctc_loss_portable.cpp.
#define FASTCTC_SIMD_ARRAY
#include "spectrogram_norm_table.h"

FASTCTC_DEFINE_NORM_KERNELS(spectrogram_norm_kernels_portable, 4)
