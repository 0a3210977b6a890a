// Launches, and the device, of the emulator.
#pragma once
#include <cstring>
#include <set>
#include <string>

namespace qk::emu {

inline cuda::Device device{80, 4};       // what current_device answers
inline std::set<std::string> launched;   // kernels, by name
// Of a block, bytes of shared memory.
inline int shared_limit() { return (device.arch < 80 ? 64 : device.arch == 90 ? 227 : 99) * 1024; }

}  // namespace qk::emu

namespace qk::cuda {

template <auto kernel, class... Args>
int launch(Grid grid, int threads, int shared_bytes, Stream, const Args&... args) {
  emu::launched.insert(__PRETTY_FUNCTION__);
  const int64_t blocks[] = {grid.x, grid.y, grid.z};
  if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535)
    emu::fail("grid (%lld, %lld, %lld)", (long long)grid.x, (long long)grid.y, (long long)grid.z);
  if (shared_bytes > emu::shared_limit()) emu::fail("%d bytes of shared memory", shared_bytes);
  emu::launch(blocks, threads, shared_bytes, [&] { kernel(args...); });
  return 0;
}

inline int fill_zero(void* p, int64_t bytes, Stream) {
  emu::check_global(p, bytes, 1);
  std::memset(p, 0, size_t(bytes));
  return 0;
}

inline int current_device(Device* device) {
  *device = emu::device;
  return 0;
}

}  // namespace qk::cuda
