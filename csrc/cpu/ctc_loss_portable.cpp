// Plain C++ only: what compilers without the GNU vector extension use, and a twin for the others in the tests.
#define FASTCTC_SIMD_ARRAY
#include "ctc_loss_run.h"

FASTCTC_DEFINE_CTC_LOSS_KERNELS(ctc_loss_kernels_portable, 4)
