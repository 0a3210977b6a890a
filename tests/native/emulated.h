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

enum class Tiles : uint8_t { none, every, hopper };  // every: each must give the bytes of the planned one; hopper: there only

struct Kind {
  const char* name;
  Test test;
  Tiles tiles = Tiles::none;
  uint64_t most = ~uint64_t(0);  // problems
};

inline void run_test(const Kind& kind, uint64_t seed) {
  constexpr int kHopper = 5;
  const bool hopper = kind.tiles == Tiles::hopper;
  const int few = hopper ? 1 : 4;  // they want large tiles; the one has all of Hopper's to itself
  emu::device = {QK_ARCH / 10, seed % 2 ? few : 1000, hopper ? kHopper : -1};
  const std::vector<char> bytes = kind.test(seed);
  emu::forget_all();
  print_hash(kind.name + (' ' + std::to_string(seed)), bytes);
  if (kind.tiles != Tiles::every || QK_ARCH < 800) return;
  for (emu::device.tile = 1; emu::device.tile < (QK_ARCH == 900 ? kHopper + 1 : kHopper); ++emu::device.tile) {
    if (kind.test(seed) != bytes) emu::fail("%s %d: another tile gives other bytes", kind.name, int(seed));
    emu::forget_all();
  }
}

// Arguments: how many problems, and of which kind only.
inline int run_tests(std::initializer_list<Kind> kinds, int argc, char** argv) {
  const uint64_t count = argc > 1 ? uint64_t(std::strtoull(argv[1], nullptr, 10)) : 60;
  for (const Kind& kind : kinds) {
    if ((kind.tiles == Tiles::hopper && QK_ARCH != 900) || (argc > 2 && std::strcmp(argv[2], kind.name))) continue;
    emu::counters = {};
    for (uint64_t seed = 0; seed < count && seed < kind.most; ++seed) run_test(kind, seed);
    std::printf("conflicts %s %lld\n", kind.name, (long long)emu::counters.conflicts);
  }
  for (const std::string& name : emu::launched) std::fprintf(stderr, "%s\n", name.c_str());
  std::printf("kernels launched %d\n", int(emu::launched.size()));
  return 0;
}

}  // namespace qk
