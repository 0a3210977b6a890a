// Convolutions, pooling and packing in the emulator.
#include "../../csrc/cuda/conv2d.h"
#include "../../csrc/cuda/pack.h"
#include "../../csrc/cuda/pool.h"
#include "emulated.h"

namespace {

using namespace qk;

std::vector<char> test_conv2d(uint64_t seed, Sizes sizes) {
  const Conv2dCase given(seed, sizes);
  Conv2dProblem p = given.p;
  std::vector<char> y = given.output();
  p.y = y.data();
  announce(given.o), announce(given.x), announce(given.weight), announce(y);
  const Scratch scratch(cuda::conv2d_workspace(p));
  succeed(cuda::conv2d(p, scratch.data, nullptr));
  return y;
}

std::vector<char> test_conv2d(uint64_t seed) { return test_conv2d(seed, Sizes::any); }
std::vector<char> test_deep(uint64_t seed) { return test_conv2d(seed, Sizes::deep); }

std::vector<char> test_pool2d(uint64_t seed) {
  const PoolCase given(seed);
  Pool2dProblem p = given.p;
  std::vector<char> y = given.output();
  p.y = reinterpret_cast<int8_t*>(y.data());
  announce(given.x), announce(y);
  succeed(cuda::pool2d(p, nullptr));
  return y;
}

// Packed here and on the CPU, which the problem comes from.
std::vector<char> test_pack(uint64_t seed) {
  const Conv2dCase given(seed);
  const Conv2dProblem& p = given.p;
  std::vector<int8_t> weight(size_t(p.oc * p.c / p.groups * p.kh * p.kw)), packed(given.weight.size());
  std::vector<uint32_t> bad(1);
  announce(given.weight), announce(weight), announce(packed), announce(bad);
  const int64_t size[] = {p.oc, p.c / p.groups, p.kh, p.kw, p.groups};
  succeed(cuda::unpack_weight(given.weight.data(), size[0], size[1], size[2], size[3], size[4], weight.data(), nullptr));
  succeed(cuda::pack_weight(weight.data(), size[0], size[1], size[2], size[3], size[4], packed.data(), bad.data(), nullptr));
  if (packed != given.weight || bad[0]) emu::fail("pack %d: another packed weight", int(seed));
  weight.back() = -128;
  succeed(cuda::pack_weight(weight.data(), size[0], size[1], size[2], size[3], size[4], packed.data(), bad.data(), nullptr));
  if (!bad[0]) emu::fail("pack %d: -128 was not noticed", int(seed));
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  return run_tests({{"conv2d", test_conv2d, Tiles::every},
                    {"pool2d", test_pool2d},
                    {"pack", test_pack},
                    {"deep-conv2d", test_deep, Tiles::every, kLargeProblems}},
                   argc, argv);
}
