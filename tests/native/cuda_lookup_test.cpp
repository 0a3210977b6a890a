// Means over images and lookups in the emulator.
#include "../../csrc/cuda/lookup.h"
#include "../../csrc/cuda/pool.h"
#include "emulated.h"

namespace {

using namespace qk;

std::vector<char> test_mean(uint64_t seed) {
  const MeanCase given(seed);
  MeanProblem p = given.p;
  std::vector<char> y = given.output();
  p.y = reinterpret_cast<float*>(y.data());
  announce(given.x), announce(y);
  succeed(cuda::mean(p, nullptr));
  return y;
}

// Where addresses are multiples of 16, and one byte further.
std::vector<char> test_lookup(uint64_t seed) {
  const LookupCase given(seed);
  LookupProblem p = given.p;
  std::vector<char> y = given.output(), x_behind(size_t(p.count) + 1), y_behind(x_behind.size());
  announce(given.x), announce(given.table), announce(x_behind), announce(y_behind), announce(y);
  p.y = reinterpret_cast<int8_t*>(y.data());
  succeed(cuda::lookup(p, nullptr));
  std::memcpy(x_behind.data() + 1, given.x.data(), given.x.size());
  p.x = reinterpret_cast<int8_t*>(x_behind.data()) + 1;
  p.y = reinterpret_cast<int8_t*>(y_behind.data()) + 1;
  succeed(cuda::lookup(p, nullptr));
  if (std::memcmp(y.data(), p.y, y.size())) emu::fail("lookup %d: another alignment gives other bytes", int(seed));
  return y;
}

}  // namespace

int main(int argc, char** argv) { return run_tests({{"mean", test_mean, {}}, {"lookup", test_lookup, {}}}, argc, argv); }
