#include "ctc_loss_run.h"

FASTCTC_DEFINE_CTC_LOSS_KERNELS(ctc_loss_kernels_avx512, 16)
