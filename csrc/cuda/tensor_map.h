// How Hopper's copy engine sees a tensor of bytes in global memory. Made on the host, handed to a kernel as a parameter.
#pragma once
#include <cstdint>

namespace qk::cuda {

// Dimensions from the innermost; a copy takes a box, swizzled by 128 bytes, and fills what lies outside with zeros.
struct TensorShape {
  int rank;                  // 2 or 3
  int64_t size[3];
  int64_t stride[2];         // bytes, of the dimensions after the first; multiples of 16
  int box[3];                // the innermost 128, the others up to 256
};

}  // namespace qk::cuda

#ifdef QK_EMU
#include "emu/tensor_map.h"
#else
#include <cuda.h>

namespace qk::cuda {

using TensorMap = CUtensorMap;

int make_tensor_map(TensorMap* map, const void* base, const TensorShape& shape);  // 0 or a CUDA error; base: 16 bytes aligned

}  // namespace qk::cuda
#endif
