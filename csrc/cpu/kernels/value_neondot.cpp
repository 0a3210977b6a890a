#include "value_kernels.h"

#include "../vec/neon.h"

QK_INSTANTIATE_VALUE_KERNELS(neondot, Neon)
