// What the emulated programs share. They run the CUDA kernels' own source over the problems of kernels_test.cpp, print the
// same lines, and the bank conflicts of each kind. Built once an architecture (QK_ARCH).
#pragma once
#include <utility>

#include "../../csrc/cuda/launch.cuh"
#include "problems.h"

namespace qk {

template <class T>
void announce(const std::vector<T>& v) { emu::announce(v.data(), int64_t(v.size() * sizeof(T))); }

inline void announce(const Operands& o) {
  announce(o.w_scale);
  announce(o.bias);
  announce(o.x_scale);
  announce(o.x_zero);
  announce(o.residual);
}

// Device memory of a call, aligned as the device's own.
struct Scratch {
  explicit Scratch(int64_t bytes) : memory(size_t(bytes) + 256) {
    data = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory.data()) + 255) / 256 * 256);
    emu::announce(data, bytes);
  }
  std::vector<char> memory;
  void* data;
};

inline void succeed(int error) {
  if (error) emu::fail("a launch returned %d", error);
}

using Test = std::pair<const char*, void (*)(uint64_t seed)>;

inline int run_tests(std::initializer_list<Test> tests, int argc, char** argv) {
  const uint64_t count = argc > 1 ? uint64_t(std::strtoull(argv[1], nullptr, 10)) : 60;
  for (const auto& [name, test] : tests) {
    emu::counters = {};
    for (uint64_t seed = 0; seed < count; ++seed) {
      emu::device = {QK_ARCH / 10, seed % 2 ? 4 : 1000};  // few processors want large tiles
      test(seed);
      emu::forget_all();
    }
    std::printf("conflicts %s %lld\n", name, (long long)emu::counters.conflicts);
  }
  return 0;
}

}  // namespace qk
