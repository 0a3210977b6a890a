// The device that launches go to, and what its errors are called. Functions that launch return 0 or a CUDA error.
#pragma once
#include <cstdint>

namespace qk::cuda {

using Stream = void*;  // cudaStream_t

struct Device {
  int arch = 0;            // compute capability, 80 for 8.0
  int processors = 0;      // streaming multiprocessors
};

int current_device(Device* device);        // the calling thread's
const char* error_text(int error);
int read_back(void* host, const void* device, int64_t bytes, Stream stream);  // waits

}  // namespace qk::cuda
