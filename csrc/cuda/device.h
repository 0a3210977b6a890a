// The device that launches go to, and what its errors are called. Functions that launch return 0 or a CUDA error.
#pragma once
#include <cstdint>

namespace qk::cuda {

using Stream = void*;  // cudaStream_t

struct Device {
  int arch = 0;            // compute capability, 80 for 8.0
  int processors = 0;      // streaming multiprocessors
  int tile = -1;           // the TileName (plan.h) that QKERNELS_CUDA_TILE asks for, for tests and tuning
};

// Makes a device the calling thread's. The CUDA runtime in this library is its own, and does not know what torch's does.
int use_device(int index);
int current_device(Device* device);
const char* error_text(int error);
int read_back(void* host, const void* device, int64_t bytes, Stream stream);  // waits

}  // namespace qk::cuda
