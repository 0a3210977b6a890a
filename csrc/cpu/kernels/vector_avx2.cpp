#include "vector_kernels.h"

#include "../vec/avx2.h"

QK_INSTANTIATE_VECTOR_KERNELS(avx2, Avx2)
