#include "vector_kernels.h"

#include "../vec/avx512.h"

QK_INSTANTIATE_VECTOR_KERNELS(avx512vnni, Avx512)
