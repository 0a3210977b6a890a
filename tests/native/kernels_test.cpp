// The kernels without Python or torch: every instruction set of this machine against plain C++, byte by byte, over
// seeded problems. Prints a hash a problem, so that machines can be compared; exits with 1 if one differs.
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "../../csrc/core/layout.h"
#include "../../csrc/cpu/conv2d.h"
#include "../../csrc/cpu/gemm.h"
#include "../../csrc/cpu/pack.h"
#include "../../csrc/cpu/pool.h"
#include "../../csrc/cpu/quantize.h"

namespace {

using namespace qk;

struct Random {
  uint64_t state;
  uint64_t next() {  // splitmix64
    uint64_t z = state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }
  int64_t between(int64_t low, int64_t high) { return low + int64_t(next() % uint64_t(high - low + 1)); }
  float real() { return float(int64_t(next() >> 40)) * 0x1p-23f - 1.0f; }  // [-1, 1)
};

template <class T>
std::vector<T> ints(Random& r, int64_t count, int64_t low, int64_t high) {
  std::vector<T> v(static_cast<size_t>(count));
  for (T& x : v) x = T(r.between(low, high));
  return v;
}

std::vector<float> reals(Random& r, int64_t count, float low, float high) {
  std::vector<float> v(static_cast<size_t>(count));
  for (float& x : v) x = low + (r.real() + 1) / 2 * (high - low);
  return v;
}

// Values of any type, with the ones that go wrong easily among the floats.
std::vector<char> activations(Random& r, int64_t count, DType type) {
  std::vector<char> bytes(size_t(count * size_of(type)));
  for (int64_t i = 0; i < count; ++i) {
    if (type == DType::s8) {
      bytes[size_t(i)] = char(r.between(-128, 127));
    } else if (type == DType::f32) {
      const float odd[] = {0.0f, -0.0f, __builtin_nanf(""), __builtin_inff(), -1e30f, 1e-41f, 0.5f, -1.5f};
      const float v = r.between(0, 60) ? 3 * r.real() : odd[r.between(0, 7)];
      std::memcpy(&bytes[size_t(i * 4)], &v, 4);
    } else {
      const uint16_t small = uint16_t(type == DType::f16 ? r.between(0, 0x3fff) : r.between(0x3c00, 0x4080));
      const uint16_t v = uint16_t(small | (r.next() & 1) << 15);
      std::memcpy(&bytes[size_t(i * 2)], &v, 2);
    }
  }
  return bytes;
}

Parallel threads(int count) {
  return {count, [](int64_t n, void (*body)(void*, int64_t), void* context) {
            std::vector<std::thread> pool;
            for (int64_t i = 0; i < n; ++i) pool.emplace_back(body, context, i);
            for (std::thread& t : pool) t.join();
          }};
}

uint64_t hash(const std::vector<char>& bytes) {  // FNV-1a
  uint64_t h = 0xcbf29ce484222325;
  for (char c : bytes) h = (h ^ uint8_t(c)) * 0x100000001b3;
  return h;
}

int failures = 0;

// run(isa, threads) -> bytes
template <class Run>
void compare(const std::string& name, Run run) {
  const std::vector<char> expected = run(Isa::scalar, 1);
  std::printf("%s %016" PRIx64 "\n", name.c_str(), hash(expected));
  for (int i = 0; i < kIsaCount; ++i)
    for (int count : {1, 2, 3}) {
      if (!isa_available(Isa(i)) || run(Isa(i), count) == expected) continue;
      std::printf("%s: %s with %d threads differs from scalar\n", name.c_str(), isa_name(Isa(i)), count);
      ++failures;
    }
}

std::vector<char> scratch_of(int64_t bytes) { return std::vector<char>(size_t(bytes) + 64); }
void* aligned(std::vector<char>& v) { return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(v.data()) + 63) / 64 * 64); }

constexpr DType kTypes[] = {DType::f32, DType::f16, DType::bf16, DType::s8};

// What GEMMs and convolutions share, drawn together; the arrays live as long as the problem.
struct Operands {
  DType x_type, out_type;
  Range range;
  std::vector<float> w_scale, bias, x_scale;
  std::vector<int32_t> x_zero;
  std::vector<char> residual;
  Epilogue e;

  Operands(Random& r, int64_t m, int64_t n, int64_t k) {
    x_type = kTypes[r.between(0, 3)];
    out_type = kTypes[r.between(0, 3)];
    range = x_type == DType::s8 ? Range::given : Range(r.between(0, 2));
    w_scale = reals(r, n, 0.001f, 0.02f);
    bias = reals(r, n, -1, 1);
    x_scale = {0.01f + 0.05f * (r.real() + 1)};
    x_zero = ints<int32_t>(r, 1, -128, 127);
    e.w_scale = w_scale.data();
    if (r.between(0, 2)) e.bias = bias.data();
    e.x_scale = x_scale.data();
    e.x_zero = x_zero.data();
    e.rows_per_scale = m;
    e.out_type = out_type;
    e.out_inv_scale = 1 / (0.02f * float(k));
    e.out_zero = int32_t(r.between(-128, 127));
    if (r.between(0, 1)) e.lo = 0;
    if (!r.between(0, 3)) e.hi = 6;
    if (!r.between(0, 2)) {
      e.residual_type = kTypes[r.between(0, 3)];
      residual = activations(r, m * n, e.residual_type);
      e.residual = residual.data();
      e.residual_stride = n;
      e.residual_scale = 0.1f;
      e.residual_zero = int32_t(r.between(-128, 127));
    }
  }
};

std::vector<int8_t> packed_weight(Random& r, int64_t oc, int64_t c, int64_t kh, int64_t kw, int64_t groups) {
  const std::vector<int8_t> weight = ints<int8_t>(r, oc * c * kh * kw, -127, 127);
  std::vector<int8_t> packed(size_t(weight_layout(oc, c, kh, kw, groups).bytes()));
  if (!pack_weight(weight.data(), oc, c, kh, kw, groups, packed.data())) ++failures;
  std::vector<int8_t> back(weight.size());
  unpack_weight(packed.data(), oc, c, kh, kw, groups, back.data());
  if (back != weight) ++failures;
  return packed;
}

std::vector<char> masked(std::vector<char> bytes, DType type, int8_t mask) {
  if (type == DType::s8)
    for (char& b : bytes) b = char(b ^ mask);
  return bytes;
}

// The same problem with int8 bytes as the kernels of some machines want them; `out` is unmasked by the caller.
struct Masked {
  int8_t mask;
  std::vector<char> x, residual;
  Epilogue e;

  Masked(int count, const std::vector<char>& plain_x, DType x_type, const Operands& o)
      : mask(count > 1 ? -128 : 0), x(masked(plain_x, x_type, mask)), residual(masked(o.residual, o.e.residual_type, mask)), e(o.e) {
    if (e.residual) e.residual = residual.data();
    e.residual_mask = e.out_mask = mask;
  }
};

void test_gemm(uint64_t seed, bool weight_only_form) {
  Random r{seed};
  GemmProblem p;
  p.m = r.between(1, 40);
  p.n = r.between(1, 90);
  p.k = r.between(1, 200);
  const Operands o(r, p.m, p.n, p.k);
  p.x_type = weight_only_form && o.x_type == DType::s8 ? DType::f32 : o.x_type;
  p.range = o.range;
  const std::vector<char> x = activations(r, p.m * p.k, p.x_type);
  const std::vector<int8_t> weight = packed_weight(r, p.n, p.k, 1, 1, 1);
  p.x = x.data();
  p.x_stride = p.k;
  p.weight = weight.data();
  p.c_stride = p.n;
  p.epilogue = o.e;
  compare((weight_only_form ? "weight-only " : "gemm ") + std::to_string(seed), [&](Isa isa, int count) {
    std::vector<char> c(size_t(p.m * p.n * size_of(o.out_type)));
    const Masked in(count, x, p.x_type, o);
    GemmProblem own = p;
    own.x = in.x.data();
    own.x_mask = p.x_type == DType::s8 ? in.mask : 0;
    own.epilogue = in.e;
    own.c = c.data();
    std::vector<char> scratch = scratch_of(weight_only_form ? weight_only_workspace(own, count) : gemm_workspace(own, isa, count));
    (weight_only_form ? weight_only : gemm)(own, isa, threads(count), aligned(scratch));
    return masked(c, o.out_type, in.mask);
  });
}

void test_conv2d(uint64_t seed) {
  Random r{seed};
  Conv2dProblem p;
  p.batch = r.between(1, 4);
  p.h = r.between(5, 20);
  p.w = r.between(5, 40);
  const int64_t kind = r.between(0, 2);  // dense, grouped, depthwise
  p.groups = kind == 0 ? 1 : kind == 1 ? r.between(2, 4) : r.between(3, 40);
  const int64_t c = kind == 2 ? 1 : r.between(1, 33), n = kind == 2 ? r.between(1, 2) : r.between(1, 24);
  p.c = c * p.groups;
  p.oc = n * p.groups;
  p.kh = r.between(1, 5);
  p.kw = r.between(1, 5);
  p.stride_h = r.between(1, 3);
  p.stride_w = r.between(1, 3);
  p.dilation_h = p.kh * 2 - 1 <= p.h ? r.between(1, 2) : 1;
  p.dilation_w = p.kw * 2 - 1 <= p.w ? r.between(1, 2) : 1;
  p.pad_top = r.between(0, 3);
  p.pad_bottom = r.between(0, 3);
  p.pad_left = r.between(0, 3);
  p.pad_right = r.between(0, 3);
  p.pad_mode = PadMode(r.between(0, 3));
  const int64_t pixels = p.oh() * p.ow(), m = p.batch * pixels;
  Operands o(r, m, p.oc, c * p.kh * p.kw);
  p.x_type = o.x_type;
  p.range = o.range;
  const std::vector<char> x = activations(r, p.batch * p.h * p.w * p.c, p.x_type);
  const std::vector<int8_t> weight = packed_weight(r, p.oc, c, p.kh, p.kw, p.groups);
  p.x = x.data();
  const bool planes = r.between(0, 1);
  const int64_t image = p.h * p.w * p.c;
  const int64_t strides[2][4] = {{image, 1, p.w * p.c, p.c}, {image, p.h * p.w, p.w, 1}};
  std::memcpy(p.x_strides, strides[planes], sizeof p.x_strides);
  p.y_nhwc = r.between(0, 1);
  p.weight = weight.data();
  p.epilogue = o.e;
  compare("conv2d " + std::to_string(seed), [&](Isa isa, int count) {
    std::vector<char> y(size_t(m * p.oc * size_of(o.out_type)));
    const Masked in(count, x, p.x_type, o);
    Conv2dProblem own = p;
    own.x = in.x.data();
    own.x_mask = p.x_type == DType::s8 ? in.mask : 0;
    own.epilogue = in.e;
    own.y = y.data();
    std::vector<char> scratch = scratch_of(conv2d_workspace(own, isa, count));
    conv2d(own, isa, threads(count), aligned(scratch));
    return masked(y, o.out_type, in.mask);
  });
}

void test_pool(uint64_t seed) {
  Random r{seed};
  Pool2dProblem p;
  p.batch = r.between(1, 2);
  p.h = r.between(4, 12);
  p.w = r.between(4, 12);
  p.c = r.between(1, 70);
  p.kh = r.between(1, 3);
  p.kw = r.between(1, 3);
  p.stride_h = r.between(1, 2);
  p.stride_w = r.between(1, 2);
  p.pad_h = p.kh / 2;
  p.pad_w = p.kw / 2;
  p.average = r.between(0, 1);
  p.count_include_pad = r.between(0, 1);
  p.x_zero = int32_t(r.between(-128, 127));
  p.oh = (p.h + 2 * p.pad_h - p.kh) / p.stride_h + 1;
  p.ow = (p.w + 2 * p.pad_w - p.kw) / p.stride_w + 1;
  const std::vector<char> x = activations(r, p.batch * p.h * p.w * p.c, DType::s8);
  compare("pool2d " + std::to_string(seed), [&](Isa isa, int count) {
    std::vector<char> y(size_t(p.batch * p.oh * p.ow * p.c));
    Pool2dProblem own = p;
    own.mask = count > 1 && !p.average ? -128 : 0;
    const std::vector<char> in = masked(x, DType::s8, own.mask);
    own.x = in.data();
    own.y = y.data();
    pool2d(own, isa, threads(count));
    return masked(y, DType::s8, own.mask);
  });
}

void test_quantize(uint64_t seed) {
  Random r{seed};
  QuantizeProblem p;
  p.rows = r.between(1, 9);
  p.cols = r.between(1, 200);
  p.x_type = kTypes[r.between(0, 2)];
  p.range = Range(r.between(0, 2));
  p.rows_per_scale = r.between(0, 1) ? 1 : p.rows;
  const std::vector<char> x = activations(r, p.rows * p.cols, p.x_type);
  p.x = x.data();
  const std::vector<float> given = reals(r, p.rows, 0.001f, 0.1f);
  const std::vector<int32_t> zeros = ints<int32_t>(r, p.rows, -128, 127);
  const DType back = kTypes[r.between(0, 2)];
  compare("quantize " + std::to_string(seed), [&](Isa isa, int count) {
    std::vector<float> scale = given;
    std::vector<int32_t> zero = zeros;
    const int64_t values = p.rows * p.cols;
    std::vector<char> q(static_cast<size_t>(values)), y(size_t(values * size_of(back)));
    QuantizeProblem own = p;
    own.scale = scale.data();
    own.zero = zero.data();
    own.q = reinterpret_cast<int8_t*>(q.data());
    quantize(own, isa, threads(count));
    DequantizeProblem d;
    d.rows = p.rows, d.cols = p.cols, d.rows_per_scale = p.rows_per_scale;
    d.q = own.q, d.scale = own.scale, d.zero = own.zero, d.y_type = back, d.y = y.data();
    dequantize(d, isa, threads(count));
    q.insert(q.end(), y.begin(), y.end());
    const char* scales = reinterpret_cast<const char*>(scale.data());
    q.insert(q.end(), scales, scales + scale.size() * sizeof(float));
    return q;
  });
}

}  // namespace

int main(int argc, char** argv) {
  const uint64_t count = argc > 1 ? uint64_t(std::strtoull(argv[1], nullptr, 10)) : 60;
  for (uint64_t seed = 0; seed < count; ++seed) {
    test_gemm(seed, false);
    test_gemm(seed, true);
    test_conv2d(seed);
    test_pool(seed);
    test_quantize(seed);
  }
  std::fprintf(stderr, "%d differ; this machine runs", failures);
  for (int i = 0; i < kIsaCount; ++i)
    if (isa_available(Isa(i))) std::fprintf(stderr, " %s", isa_name(Isa(i)));
  std::fprintf(stderr, "\n");
  return failures > 0;
}
