#include "device.h"

#include <cuda_runtime.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <utility>

#include "plan.h"

namespace qk::cuda {

// -1 where nothing is asked for; qkernels/ops.py has looked at the value.
static int asked_tile() {
  const char* asked = std::getenv("QKERNELS_CUDA_TILE");
  for (int i = int(std::size(kTileNames)) - 1; asked && i > 0; --i)
    if (!std::strcmp(asked, kTileNames[i])) return i;
  return -1;
}

int use_device(int index) { return cudaSetDevice(index); }

int current_device(Device* device) {
  static std::atomic<uint64_t> known[64];  // arch and processors of each device, once asked for
  int index = 0;
  if (const cudaError_t error = cudaGetDevice(&index)) return error;
  uint64_t packed = known[index % 64].load(std::memory_order_relaxed);
  if (!packed) {
    int major = 0, minor = 0, processors = 0;
    for (auto [value, attribute] : {std::pair{&major, cudaDevAttrComputeCapabilityMajor},
                                    {&minor, cudaDevAttrComputeCapabilityMinor},
                                    {&processors, cudaDevAttrMultiProcessorCount}})
      if (const cudaError_t error = cudaDeviceGetAttribute(value, attribute, index)) return error;
    packed = uint64_t(major * 10 + minor) << 32 | uint32_t(processors);
    known[index % 64].store(packed, std::memory_order_relaxed);
  }
  static const int tile = asked_tile();
  *device = {int(packed >> 32), int(packed & 0xffffffff), tile};
  return 0;
}

const char* error_text(int error) { return cudaGetErrorString(cudaError_t(error)); }

int read_back(void* host, const void* device, int64_t bytes, Stream stream) {
  if (const cudaError_t error = cudaMemcpyAsync(host, device, size_t(bytes), cudaMemcpyDeviceToHost, cudaStream_t(stream))) return error;
  return cudaStreamSynchronize(cudaStream_t(stream));
}

}  // namespace qk::cuda
