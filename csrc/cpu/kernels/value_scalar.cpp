#include "value_kernels.h"

#include "../vec/scalar.h"

QK_INSTANTIATE_VALUE_KERNELS(scalar, Scalar)
