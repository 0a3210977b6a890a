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

constexpr int kOptIn = 48 * 1024;  // shared memory above it is asked for

// Once a kernel and device: whether the code that was found for the device is a kernel that is made for it.
template <auto kernel>
int prepare(int threads, int shared_bytes) {
  static std::atomic<uint64_t> prepared{0};
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  const uint64_t bit = uint64_t(1) << (device % 64);
  if (prepared.load(std::memory_order_relaxed) & bit) return 0;
  cudaFuncAttributes found;
  if (const cudaError_t error = cudaFuncGetAttributes(&found, kernel)) return error;
  if (found.maxThreadsPerBlock < threads) return cudaErrorNoKernelImageForDevice;
  if (shared_bytes > kOptIn)
    if (const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes)) return error;
  prepared.fetch_or(bit, std::memory_order_relaxed);
  return 0;
}

template <auto kernel, class... Args>
int launch(Grid grid, int threads, int shared_bytes, Stream stream, const Args&... args) {
  if (const int error = prepare<kernel>(threads, shared_bytes)) return error;
  kernel<<<dim3(unsigned(grid.x), unsigned(grid.y), unsigned(grid.z)), threads, size_t(shared_bytes), cudaStream_t(stream)>>>(args...);
  return cudaGetLastError();
}

inline int fill_zero(void* p, int64_t bytes, Stream stream) { return cudaMemsetAsync(p, 0, size_t(bytes), cudaStream_t(stream)); }

}  // namespace qk::cuda
#endif
