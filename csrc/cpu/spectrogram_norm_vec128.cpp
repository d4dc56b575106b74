#include "spectrogram_norm_table.h"

FASTCTC_DEFINE_NORM_KERNELS(spectrogram_norm_kernels_vec128, 4)
