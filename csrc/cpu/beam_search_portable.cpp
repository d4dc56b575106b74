// Plain C++ only: what compilers without the GNU vector extension use, and a twin for the others in the tests.
#define FASTCTC_SIMD_ARRAY
#include "beam_search_run.h"

FASTCTC_DEFINE_BEAM_KERNELS(beam_kernels_portable, 4)
