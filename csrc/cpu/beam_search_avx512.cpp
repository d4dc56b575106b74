#include "beam_search_run.h"

FASTCTC_DEFINE_BEAM_KERNELS(beam_kernels_avx512, 16)
