#include "ctc_loss_run.h"

FASTCTC_DEFINE_CTC_LOSS_KERNELS(ctc_loss_kernels_vec128, 4)
