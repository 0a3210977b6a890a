// How the contract's arithmetic is inlined, on the host and on a device.
#pragma once

#ifdef __CUDACC__
#define QK_METHOD inline __device__ __attribute__((always_inline))  // in a .cu, only kernels compute
#else
#define QK_METHOD inline __attribute__((always_inline))
#endif
#define QK_INLINE static QK_METHOD
#define QK_LAMBDA __attribute__((always_inline))
