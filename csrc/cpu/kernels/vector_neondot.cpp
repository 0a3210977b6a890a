#include "vector_kernels.h"

#include "../vec/neon.h"

QK_INSTANTIATE_VECTOR_KERNELS(neondot, Neon)
