// What the emulated programs share. They run the CUDA kernels' own source over the problems of kernels_test.cpp, print the
// same lines, the bank conflicts of each kind and how many kernels took part. Built once an architecture (QK_ARCH).
#pragma once
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

// The bytes that a problem gives, under the device that emu::device says.
using Test = std::vector<char> (*)(uint64_t seed);

struct Kind {
  const char* name;
  Test test;
  bool tiled;                // depends on the tile: every one of them must give the same bytes
};

inline int run_tests(std::initializer_list<Kind> kinds, int argc, char** argv) {
  const uint64_t count = argc > 1 ? uint64_t(std::strtoull(argv[1], nullptr, 10)) : 60;
  for (const Kind& kind : kinds) {
    emu::counters = {};
    for (uint64_t seed = 0; seed < count; ++seed) {
      emu::device = {QK_ARCH / 10, seed % 2 ? 4 : 1000, -1};  // few processors want large tiles
      const std::vector<char> bytes = kind.test(seed);
      emu::forget_all();
      print_hash(kind.name + (' ' + std::to_string(seed)), bytes);
      const int tiles = !kind.tiled || QK_ARCH < 800 ? 0 : QK_ARCH == 900 ? 5 : 4;
      for (emu::device.tile = 1; emu::device.tile <= tiles; ++emu::device.tile) {
        if (kind.test(seed) != bytes) emu::fail("%s %d: another tile gives other bytes", kind.name, int(seed));
        emu::forget_all();
      }
    }
    std::printf("conflicts %s %lld\n", kind.name, (long long)emu::counters.conflicts);
  }
  for (const std::string& name : emu::launched) std::fprintf(stderr, "%s\n", name.c_str());
  std::printf("kernels launched %d\n", int(emu::launched.size()));
  return 0;
}

}  // namespace qk
