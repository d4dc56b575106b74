#include "spectrogram_norm_table.h"

FASTCTC_DEFINE_NORM_KERNELS(spectrogram_norm_kernels_avx2, 8)
