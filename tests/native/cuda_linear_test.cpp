// Linear layers and quantization in the emulator.
#include "../../csrc/cuda/gemm.h"
#include "../../csrc/cuda/quantize.h"
#include "emulated.h"

namespace {

using namespace qk;

std::vector<char> test_linear(uint64_t seed, bool weight_only, Sizes sizes = Sizes::any) {
  const GemmCase given(seed, weight_only, sizes);
  GemmProblem p = given.p;
  std::vector<char> c = given.output();
  p.c = c.data();
  announce(given.o), announce(given.x), announce(given.weight), announce(c);
  const Scratch scratch(cuda::gemm_workspace(p));
  succeed(weight_only ? cuda::weight_only(p, nullptr) : cuda::gemm(p, scratch.data, nullptr));
  return c;
}

std::vector<char> test_gemm(uint64_t seed) { return test_linear(seed, false); }
std::vector<char> test_weight_only(uint64_t seed) { return test_linear(seed, true); }
std::vector<char> test_tiles(uint64_t seed) { return test_linear(seed, false, Sizes::tiles); }
std::vector<char> test_deep(uint64_t seed) { return test_linear(seed, false, Sizes::deep); }

std::vector<char> test_quantize(uint64_t seed) {
  QuantizeCase given(seed);
  const int64_t values = given.rows * given.cols;
  std::vector<char> q(static_cast<size_t>(values)), y(size_t(values * size_of(given.back)));
  std::vector<uint32_t> extremes(2);
  announce(given.x), announce(given.scale), announce(given.zero), announce(q), announce(y), announce(extremes);
  cuda::QuantizeRows p;
  p.rows = given.rows, p.cols = p.x_stride = p.q_stride = given.cols, p.rows_per_scale = given.rows_per_scale;
  p.x = given.x.data(), p.x_type = given.type, p.scales.range = given.range;
  p.scales.scale = given.scale.data(), p.scales.zero = given.zero.data();
  p.q = reinterpret_cast<int8_t*>(q.data());
  if (given.range != Range::given && p.rows_per_scale > 1) p.scales.extremes = extremes.data();
  succeed(cuda::quantize_rows(p, nullptr));
  cuda::DequantizeRows d;
  d.rows = p.rows, d.cols = p.cols, d.rows_per_scale = p.rows_per_scale;
  d.q = p.q, d.scale = given.scale.data(), d.zero = given.zero.data(), d.y_type = given.back, d.y = y.data();
  succeed(cuda::dequantize_rows(d, nullptr));
  return joined(q, y, given.scale);
}

}  // namespace

int main(int argc, char** argv) {
  return run_tests({{"gemm", test_gemm, Tiles::every},
                    {"weight-only", test_weight_only},
                    {"quantize", test_quantize},
                    {"deep", test_deep, Tiles::every, kLargeProblems},
                    {"tiles", test_tiles, Tiles::hopper, kLargeProblems}},
                   argc, argv);
}
