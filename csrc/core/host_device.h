// Marks the functions that CPU and CUDA code share.
#pragma once

#ifdef __CUDACC__
#define FASTCTC_HOST_DEVICE __host__ __device__
#else
#define FASTCTC_HOST_DEVICE
#endif
