// Tensor maps of the emulator: what the driver would have checked, and what the copy engine reads.
#pragma once

namespace qk::cuda {

struct TensorMap {
  const char* base;
  TensorShape shape;
};

inline int make_tensor_map(TensorMap* map, const void* base, const TensorShape& shape) {
  bool good = reinterpret_cast<uintptr_t>(base) % 16 == 0 && shape.box[0] == 128;
  for (int d = 0; d < shape.rank; ++d) good = good && shape.size[d] > 0 && shape.size[d] >> 32 == 0 && shape.box[d] > 0 && shape.box[d] <= 256;
  for (int d = 0; d + 1 < shape.rank; ++d) good = good && shape.stride[d] > 0 && shape.stride[d] % 16 == 0 && shape.stride[d] >> 40 == 0;
  *map = {static_cast<const char*>(base), shape};
  return !good;
}

}  // namespace qk::cuda
