// Starting kernels and asking for the device: the CUDA runtime, or the emulator.
#pragma once
#include "device.h"
#include "prim.cuh"

namespace qk::cuda {

struct Grid {
  int64_t x = 1, y = 1, z = 1;
};

}  // namespace qk::cuda

#ifdef QK_EMU
#include "emu/launch.h"
#else
#include <atomic>

namespace qk::cuda {

constexpr int kOptIn = 48 * 1024;  // shared memory above it is asked for once a kernel and device

template <auto kernel, class... Args>
int launch(Grid grid, int threads, int shared_bytes, Stream stream, const Args&... args) {
  if (shared_bytes > kOptIn) {
    static std::atomic<uint64_t> asked{0};
    int device = 0;
    if (const cudaError_t error = cudaGetDevice(&device)) return error;
    const uint64_t bit = uint64_t(1) << (device % 64);
    if (!(asked.load(std::memory_order_relaxed) & bit)) {
      if (const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes)) return error;
      asked.fetch_or(bit, std::memory_order_relaxed);
    }
  }
  kernel<<<dim3(unsigned(grid.x), unsigned(grid.y), unsigned(grid.z)), threads, size_t(shared_bytes), cudaStream_t(stream)>>>(args...);
  return cudaGetLastError();
}

inline int fill_zero(void* p, int64_t bytes, Stream stream) { return cudaMemsetAsync(p, 0, size_t(bytes), cudaStream_t(stream)); }

}  // namespace qk::cuda
#endif
