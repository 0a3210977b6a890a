#include "value_kernels.h"

#include "../vec/avx2.h"

QK_INSTANTIATE_VALUE_KERNELS(avx2, Avx2)
