#include "beam_search_run.h"

FASTCTC_DEFINE_BEAM_KERNELS(beam_kernels_vec128, 4)
