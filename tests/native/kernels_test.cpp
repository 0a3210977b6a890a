// The kernels without Python or torch: every instruction set of this machine against plain C++, byte by byte, over
// seeded problems. Prints a hash a problem, so that machines can be compared; exits with 1 if one differs.
#include <algorithm>
#include <thread>

#include "../../csrc/cpu/attention.h"
#include "../../csrc/cpu/conv2d.h"
#include "../../csrc/cpu/gemm.h"
#include "../../csrc/cpu/move.h"
#include "../../csrc/cpu/pool.h"
#include "../../csrc/cpu/quantize.h"
#include "../../csrc/cpu/norms.h"
#include "problems.h"

namespace {

using namespace qk;

Parallel threads(int count) {
  return {count, [](int64_t n, void (*body)(void*, int64_t), void* context) {
            std::vector<std::thread> pool;
            for (int64_t i = 0; i < n; ++i) pool.emplace_back(body, context, i);
            for (std::thread& t : pool) t.join();
          }};
}

int failures = 0;

// Every way that a convolution may be taken, beside the direct one, which the others are compared with.
ConvWay way_of(int count) { return count == 1 ? ConvWay::direct : count == 2 ? ConvWay::winograd : ConvWay::counted; }

// run(isa, threads) -> bytes
template <class Run>
void compare(const std::string& name, Run run) {
  const std::vector<char> expected = run(Isa::scalar, 1);
  print_hash(name, expected);
  for (int i = 0; i < kIsaCount; ++i)
    for (int count : {1, 2, 3}) {
      if (!isa_available(Isa(i)) || run(Isa(i), count) == expected) continue;
      std::printf("%s: %s with %d threads differs from scalar\n", name.c_str(), isa_name(Isa(i)), count);
      ++failures;
    }
}

std::vector<char> scratch_of(int64_t bytes) { return std::vector<char>(size_t(bytes) + 64); }
void* aligned(std::vector<char>& v) { return qk::aligned(v.data()); }

std::vector<char> masked(std::vector<char> bytes, DType type, int8_t mask) {
  if (type == DType::s8)
    for (char& b : bytes) b = char(b ^ mask);
  return bytes;
}

// The same problem with int8 bytes as the kernels of some machines want them; the caller unmasks the output.
struct Masked {
  int8_t mask;
  std::vector<char> x, residual;

  template <class Case>
  Masked(int count, const Case& given)
      : mask(count > 1 ? -128 : 0), x(masked(given.x, given.p.x_type, mask)), residual(masked(given.o.residual, given.o.e.residual_type, mask)) {}

  template <class Problem>
  void put_into(Problem& p) const {
    p.x = x.data();
    p.x_mask = p.x_type == DType::s8 ? mask : 0;
    if (p.epilogue.residual) p.epilogue.residual = residual.data();
    p.epilogue.residual_mask = p.epilogue.out_mask = mask;
  }
};

void test_gemm(const char* name, uint64_t seed, bool weight_only_form, Sizes sizes = Sizes::any) {
  const GemmCase given(seed, weight_only_form, sizes);
  compare(name + (' ' + std::to_string(seed)), [&](Isa isa, int count) {
    std::vector<char> c = given.output();
    GemmProblem own = given.p;
    own.c = c.data();
    const Masked in(count, given);
    in.put_into(own);
    const GemmPlan plan = plan_linear(own, isa, count);
    std::vector<char> scratch = scratch_of(weight_only_form ? weight_only_workspace(own, count) : plan.bytes);
    if (weight_only_form) weight_only(own, isa, threads(count), aligned(scratch));
    else gemm(own, plan, threads(count), aligned(scratch));
    return masked(c, given.o.out_type, in.mask);
  });
}

void test_conv2d(const char* name, uint64_t seed, Sizes sizes = Sizes::any) {
  const Conv2dCase given(seed, sizes);
  compare(name + (' ' + std::to_string(seed)), [&](Isa isa, int count) {
    std::vector<char> y = given.output();
    Conv2dProblem own = given.p;
    own.y = y.data();
    const Masked in(count, given);
    in.put_into(own);
    const ConvPlan plan = plan_conv2d(own, isa, count, way_of(count));
    std::vector<char> scratch = scratch_of(plan.bytes);
    conv2d(own, plan, threads(count), aligned(scratch));
    return masked(y, given.o.out_type, in.mask);
  });
}

// int8 pixels with a border of the zero point around each image, and room to read on behind.
std::vector<char> with_border(const Conv2dCase& given, const Conv2dProblem& p, int64_t border, int8_t mask, int64_t behind) {
  const int64_t row = (p.w + 2 * border) * p.c, image = (p.h + 2 * border) * row;
  std::vector<char> padded(size_t(p.batch * image + behind));
  for (int64_t n = 0; n < p.batch; ++n) {
    const int64_t scale = n * p.oh() * p.ow() / p.epilogue.rows_per_scale;
    std::memset(&padded[size_t(n * image)], int8_t(p.epilogue.x_zero[scale]) ^ mask, size_t(image));
    for (int64_t h = 0; h < p.h; ++h)
      for (int64_t i = 0; i < p.w * p.c; ++i)
        padded[size_t(n * image + (h + border) * row + border * p.c + i)] = char(given.x[size_t((n * p.h + h) * p.w * p.c + i)] ^ mask);
  }
  return padded;
}

// The pixels within y's border, or nothing where the border is not its zero point.
std::vector<char> without_border(const std::vector<char>& y, const Conv2dProblem& p) {
  const char zero = char(int8_t(p.epilogue.out_zero) ^ p.epilogue.out_mask);
  std::vector<char> pixels;
  for (int64_t i = 0, count = int64_t(y.size()); i < count; ++i) {
    const int64_t line = i % p.y_image() / p.y_row() - p.y_border, column = i % p.y_row() / p.oc - p.y_border;
    if (line >= 0 && line < p.oh() && column >= 0 && column < p.ow()) pixels.push_back(y[size_t(i)]);
    else if (y[size_t(i)] != zero) return {};
  }
  return pixels;
}

// What scalar code makes of bare images, the others make where x lies in its padding and y has a border.
void test_borders(const char* name, uint64_t seed, Sizes sizes = Sizes::any) {
  const Conv2dCase given(seed, sizes);
  Random r{~seed};
  const int64_t more = r.between(0, 2), y_border = r.between(0, 3);
  compare(name + (' ' + std::to_string(seed)), [&](Isa isa, int count) {
    const bool bare = isa == Isa::scalar && count == 1;
    Conv2dProblem own = given.p;
    const Masked in(count, given);
    in.put_into(own);
    own.x_type = own.epilogue.out_type = DType::s8, own.range = Range::given, own.pad_mode = PadMode::zeros;
    own.y_nhwc = true, own.x_padded = !bare, own.y_border = bare ? 0 : y_border, own.x_mask = in.mask;
    const int64_t border = bare ? 0 : std::max({own.pad_top, own.pad_bottom, own.pad_left, own.pad_right}) + more;
    const int64_t read_on = plan_conv2d(own, isa, count, way_of(count)).read_on;  // the same whatever the strides
    const std::vector<char> x = with_border(given, own, border, in.mask, read_on);
    own.x_strides[1] = 1, own.x_strides[3] = own.c, own.x_strides[2] = (own.w + 2 * border) * own.c;
    own.x_strides[0] = (own.h + 2 * border) * own.x_strides[2];
    own.x = x.data() + border * (own.x_strides[2] + own.c);
    std::vector<char> y(size_t(own.batch * own.y_image()), 0x5a);
    own.y = y.data() + own.y_border * (own.y_row() + own.oc);
    const ConvPlan plan = plan_conv2d(own, isa, count, way_of(count));
    std::vector<char> scratch = scratch_of(plan.bytes);
    conv2d(own, plan, threads(count), aligned(scratch));
    return masked(without_border(y, own), DType::s8, in.mask);
  });
}

void test_pool(uint64_t seed) {
  const PoolCase given(seed);
  compare("pool2d " + std::to_string(seed), [&](Isa isa, int count) {
    std::vector<char> y = given.output();
    Pool2dProblem own = given.p;
    own.mask = count > 1 ? -128 : 0;
    const std::vector<char> x = masked({given.x.begin(), given.x.end()}, DType::s8, own.mask);
    own.x = x.data();
    own.y = y.data();
    pool2d(own, isa, threads(count));
    return masked(y, DType::s8, own.mask);
  });
}

void test_mean(uint64_t seed) {
  const MeanCase given(seed);
  compare("mean " + std::to_string(seed), [&](Isa, int count) {
    std::vector<char> y = given.output();
    MeanProblem own = given.p;
    own.y = reinterpret_cast<float*>(y.data());
    mean(own, threads(count));
    return y;
  });
}

void test_lookup(uint64_t seed) {
  const LookupCase given(seed);
  compare("lookup " + std::to_string(seed), [&](Isa isa, int count) {
    std::vector<char> y = given.output();
    LookupProblem own = given.p;
    own.mask = count > 1 ? -128 : 0;
    const std::vector<char> x = masked({given.x.begin(), given.x.end()}, DType::s8, own.mask);
    own.x = reinterpret_cast<const int8_t*>(x.data());
    own.y = reinterpret_cast<int8_t*>(y.data());
    lookup(own, isa, threads(count));
    return masked(y, DType::s8, own.mask);
  });
}

void test_quantize(uint64_t seed) {
  const QuantizeCase given(seed);
  compare("quantize " + std::to_string(seed), [&](Isa isa, int count) {
    std::vector<float> scale = given.scale;
    std::vector<int32_t> zero = given.zero;
    const int64_t values = given.rows * given.cols;
    std::vector<char> q(static_cast<size_t>(values)), y(size_t(values * size_of(given.back)));
    QuantizeProblem own;
    own.rows = given.rows, own.cols = given.cols, own.rows_per_scale = given.rows_per_scale;
    own.x = given.x.data(), own.x_type = given.type, own.range = given.range;
    own.scale = scale.data();
    own.zero = zero.data();
    own.q = reinterpret_cast<int8_t*>(q.data());
    quantize(own, isa, threads(count));
    DequantizeProblem d;
    d.rows = own.rows, d.cols = own.cols, d.rows_per_scale = own.rows_per_scale;
    d.q = own.q, d.scale = own.scale, d.zero = own.zero, d.y_type = given.back, d.y = y.data();
    dequantize(d, isa, threads(count));
    return joined(q, y, scale);
  });
}

void test_layer_norm(uint64_t seed) {
  const NormCase given(seed);
  compare("layer_norm " + std::to_string(seed), [&](Isa isa, int count) {
    std::vector<char> y = given.output();
    LayerNormProblem own = given.p;
    own.y = y.data();
    own.epilogue.out_mask = count > 1 ? -128 : 0;
    std::vector<char> scratch = scratch_of(layer_norm_workspace(own, count));
    layer_norm(own, isa, threads(count), aligned(scratch));
    return masked(y, own.epilogue.out_type, own.epilogue.out_mask);
  });
}

void test_attention(uint64_t seed) {
  const AttentionCase given(seed);
  compare("attention " + std::to_string(seed), [&](Isa isa, int count) {
    std::vector<char> y = given.output();
    AttentionProblem own = given.p;
    own.y = y.data();
    own.epilogue.out_mask = count > 1 ? -128 : 0;
    std::vector<char> scratch = scratch_of(attention_workspace(own, count));
    attention(own, isa, threads(count), aligned(scratch));
    return masked(y, own.epilogue.out_type, own.epilogue.out_mask);
  });
}

}  // namespace

int main(int argc, char** argv) {
  const uint64_t count = argc > 1 ? uint64_t(std::strtoull(argv[1], nullptr, 10)) : 60;
  for (uint64_t seed = 0; seed < count; ++seed) {
    test_gemm("gemm", seed, false);
    test_gemm("weight-only", seed, true);
    test_conv2d("conv2d", seed);
    test_conv2d("square-conv2d", seed, Sizes::square);
    test_borders("borders", seed);
    test_borders("square-borders", seed, Sizes::square);
    test_pool(seed);
    test_quantize(seed);
    test_mean(seed);
    test_lookup(seed);
    test_layer_norm(seed);
    test_attention(seed);
  }
  for (uint64_t seed = 0; seed < count && seed < kLargeProblems; ++seed) {
    test_gemm("tiles", seed, false, Sizes::tiles);
    test_gemm("deep", seed, false, Sizes::deep);
    test_conv2d("deep-conv2d", seed, Sizes::deep);
  }
  std::fprintf(stderr, "%d differ; this machine runs", failures);
  for (int i = 0; i < kIsaCount; ++i)
    if (isa_available(Isa(i))) std::fprintf(stderr, " %s", isa_name(Isa(i)));
  std::fprintf(stderr, "\n");
  return failures > 0;
}
