// The driver's encoder, asked for by name: the library links to no driver, and loads where there is none.
#include "tensor_map.h"

#include <cuda_runtime.h>

namespace qk::cuda {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

Encode find_encoder() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result;
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
  return error == cudaSuccess && result == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(found) : nullptr;
}

}  // namespace

int make_tensor_map(TensorMap* map, const void* base, const TensorShape& shape) {
  static const Encode encode = find_encoder();
  if (!encode) return cudaErrorNotSupported;
  cuuint64_t size[3], stride[2];
  cuuint32_t box[3], step[3];
  for (int d = 0; d < 3; ++d) {
    size[d] = cuuint64_t(shape.size[d]);
    box[d] = cuuint32_t(shape.box[d]);
    step[d] = 1;
    if (d < 2) stride[d] = cuuint64_t(shape.stride[d]);
  }
  const CUresult error =
      encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT8, cuuint32_t(shape.rank), const_cast<void*>(base), size, stride, box, step,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return error == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace qk::cuda
