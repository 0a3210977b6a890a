#include "value_kernels.h"

#include "../vec/avx512.h"

QK_INSTANTIATE_VALUE_KERNELS(avx512vnni, Avx512)
