#include "vector_kernels.h"

#include "../vec/scalar.h"

QK_INSTANTIATE_VECTOR_KERNELS(scalar, Scalar)
