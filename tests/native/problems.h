// Seeded problems. Every program of this folder draws the same ones, so that their results compare by hash, whatever the
// machine or the backend.
#pragma once
#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "../../csrc/core/layout.h"
#include "../../csrc/core/padding.h"
#include "../../csrc/core/problem.h"
#include "../../csrc/cpu/pack.h"

namespace qk {

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

inline std::vector<float> reals(Random& r, int64_t count, float low, float high) {
  std::vector<float> v(static_cast<size_t>(count));
  for (float& x : v) x = low + (r.real() + 1) / 2 * (high - low);
  return v;
}

// Values of any type, with the ones that go wrong easily among the floats.
inline std::vector<char> activations(Random& r, int64_t count, DType type) {
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

inline uint64_t hash(const std::vector<char>& bytes) {  // FNV-1a
  uint64_t h = 0xcbf29ce484222325;
  for (char c : bytes) h = (h ^ uint8_t(c)) * 0x100000001b3;
  return h;
}

inline void print_hash(const std::string& name, const std::vector<char>& bytes) {
  std::printf("%s %016" PRIx64 "\n", name.c_str(), hash(bytes));
}

constexpr DType kTypes[] = {DType::f32, DType::f16, DType::bf16, DType::s8};

// What GEMMs and convolutions share, for m rows of which `rows_each` may have a scale of their own.
struct Operands {
  DType x_type, out_type;
  Range range;
  std::vector<float> w_scale, bias, x_scale;
  std::vector<int32_t> x_zero;
  std::vector<char> residual;
  Epilogue e;

  void draw(Random& r, int64_t m, int64_t n, int64_t k, int64_t rows_each) {
    const bool chained = !r.between(0, 3);  // int8 all the way, with one scale
    x_type = chained ? DType::s8 : kTypes[r.between(0, 3)];
    out_type = chained ? DType::s8 : kTypes[r.between(0, 3)];
    range = x_type == DType::s8 ? Range::given : Range(r.between(0, 2));
    w_scale = reals(r, n, 0.001f, 0.02f);
    bias = reals(r, n, -1, 1);
    e.rows_per_scale = chained || r.between(0, 1) ? m : rows_each;
    x_scale = reals(r, m / e.rows_per_scale, 0.01f, 0.11f);
    x_zero = ints<int32_t>(r, m / e.rows_per_scale, -128, 127);
    e.w_scale = w_scale.data();
    if (r.between(0, 2)) e.bias = bias.data();
    e.x_scale = x_scale.data();
    e.x_zero = x_zero.data();
    e.out_type = out_type;
    e.out_inv_scale = 1 / (0.02f * float(k));
    e.out_zero = int32_t(r.between(-128, 127));
    if (r.between(0, 1)) e.lo = 0;
    if (!r.between(0, 3)) e.hi = r.between(0, 3) ? 6 : 0;
    if (!r.between(0, chained ? 1 : 2)) {
      e.residual_type = chained ? DType::s8 : kTypes[r.between(0, 3)];
      residual = activations(r, m * n, e.residual_type);
      e.residual = residual.data();
      e.residual_stride = n;
      e.residual_scale = 0.1f;
      e.residual_zero = int32_t(r.between(-128, 127));
    }
  }
};

inline std::vector<int8_t> packed_weight(Random& r, int64_t oc, int64_t c, int64_t kh, int64_t kw, int64_t groups) {
  const std::vector<int8_t> weight = ints<int8_t>(r, oc * c * kh * kw, -127, 127);
  std::vector<int8_t> packed(size_t(weight_layout(oc, c, kh, kw, groups).bytes()));
  std::vector<int8_t> back(weight.size());
  const bool packs = pack_weight(weight.data(), oc, c, kh, kw, groups, packed.data());
  unpack_weight(packed.data(), oc, c, kh, kw, groups, back.data());
  if (!packs || back != weight) std::puts("a weight does not come back from its packed form");
  return packed;
}

// A few to 40 mostly; now and then enough for the largest tiles of any backend, and for all stages of a pipeline.
inline int64_t size(Random& r, int64_t few, int64_t least, int64_t most) { return r.between(0, 3) ? r.between(1, few) : r.between(least, most); }

// Any; several of the largest tiles, with remainders (a GEMM's); few rows and channels of a long K.
enum class Sizes : uint8_t { any, tiles, deep, square };  // square: 3x3 windows, one a pixel
constexpr uint64_t kLargeProblems = 4;  // of the latter two, a kind

struct GemmCase {
  GemmProblem p;
  Operands o;
  std::vector<char> x;
  std::vector<int8_t> weight;

  GemmCase(uint64_t seed, bool weight_only, Sizes sizes = Sizes::any) {
    Random r{seed};
    if (sizes == Sizes::any) {
      p.m = size(r, 40, 60, 200);
      p.n = size(r, 90, 100, 200);
      p.k = size(r, 200, 300, 800);
    } else {
      const bool deep = sizes == Sizes::deep;
      p.m = deep ? r.between(17, 40) : r.between(257, 400);
      p.n = deep ? r.between(20, 100) : r.between(129, 200);
      p.k = deep ? r.between(2048, 3000) : r.between(200, 500);
    }
    if (r.between(0, 1)) p.n = round_up(p.n, 4);
    if (r.between(0, 1)) p.k = round_up(p.k, 16);
    o.draw(r, p.m, p.n, p.k, 1);
    p.x_type = weight_only && o.x_type == DType::s8 ? DType::f32 : o.x_type;
    p.range = o.range;
    p.x_stride = r.between(0, 2) ? p.k : p.k + r.between(1, 32);
    x = activations(r, p.m * p.x_stride, p.x_type);
    weight = packed_weight(r, p.n, p.k, 1, 1, 1);
    p.x = x.data();
    p.weight = weight.data();
    p.c_stride = p.n;
    p.epilogue = o.e;
  }
  std::vector<char> output() const { return std::vector<char>(size_t(p.m * p.n * size_of(o.out_type))); }
};

struct Conv2dCase {
  Conv2dProblem p;
  Operands o;
  std::vector<char> x;
  std::vector<int8_t> weight;
  int64_t m;                 // output pixels

  explicit Conv2dCase(uint64_t seed, Sizes sizes = Sizes::any) {
    Random r{seed};
    p.batch = r.between(1, 4);
    const int64_t thin = r.between(0, 3);  // images of few pixels, of one in a row or column
    p.h = thin & 1 ? r.between(5, 20) : r.between(0, 1) ? 1 : r.between(2, 5);
    p.w = thin & 2 ? r.between(5, 40) : r.between(0, 1) ? 1 : r.between(2, 5);
    const int64_t kind = r.between(0, 2);  // dense, grouped, depthwise
    p.groups = kind == 0 ? 1 : kind == 1 ? r.between(2, 4) : r.between(3, 40);
    if (kind == 2 && r.between(0, 2)) p.groups = round_up(p.groups, 4);
    int64_t c = kind == 2 ? 1 : r.between(1, 33), n = kind == 2 ? 1 + !r.between(0, 2) : r.between(1, 24);
    const bool pointwise = kind == 0 && !r.between(0, 2);  // a window is a pixel
    if (kind != 2 && r.between(0, 1)) c = round_up(c, r.between(0, 1) ? 16 : 4);
    if (pointwise && r.between(0, 1)) c = round_up(c, 16);
    if (kind != 2 && r.between(0, 1)) n = round_up(n, 4);
    p.c = c * p.groups;
    p.oc = n * p.groups;
    p.kh = r.between(1, 5);
    p.kw = r.between(1, 5);
    p.stride_h = r.between(1, 3);
    p.stride_w = r.between(1, 3);
    p.dilation_h = r.between(1, 2);
    p.dilation_w = r.between(1, 2);
    p.pad_top = r.between(0, 3);
    p.pad_bottom = r.between(0, 3);
    p.pad_left = r.between(0, 3);
    p.pad_right = r.between(0, 3);
    if (pointwise) {
      p.kh = p.kw = p.stride_h = p.stride_w = 1;
      p.pad_top = p.pad_bottom = p.pad_left = p.pad_right = 0;
    }
    if (sizes == Sizes::deep) {
      p.h = r.between(4, 7), p.w = r.between(4, 7);
      p.groups = r.between(1, 2), c = seed % 2 ? r.between(230, 260) : 240;
      if (seed % 2) n = round_up(n, 4);  // whole vectors of y, which then is no planes
      p.c = c * p.groups, p.oc = n * p.groups;
      p.kh = p.kw = 3;
      p.dilation_h = p.dilation_w = 1;
    }
    if (sizes == Sizes::square) p.kh = p.kw = 3, p.stride_h = p.stride_w = p.dilation_h = p.dilation_w = 1;
    p.pad_mode = r.between(0, 1) ? PadMode::zeros : PadMode(r.between(0, 3));
    shrink_to_fit();
    const int64_t pixels = p.oh() * p.ow();
    m = p.batch * pixels;
    o.draw(r, m, p.oc, c * p.kh * p.kw, pixels);
    p.x_type = o.x_type;
    p.range = o.range;
    x = activations(r, p.batch * p.h * p.w * p.c, p.x_type);
    weight = packed_weight(r, p.oc, c, p.kh, p.kw, p.groups);
    p.x = x.data();
    const bool planes = r.between(0, 1);
    const int64_t image = p.h * p.w * p.c;
    const int64_t strides[2][4] = {{image, 1, p.w * p.c, p.c}, {image, p.h * p.w, p.w, 1}};
    std::memcpy(p.x_strides, strides[planes], sizeof p.x_strides);
    if (p.w == 1 && r.between(0, 3)) p.x_strides[3] = 1;  // of an axis of one, any, as torch's views have it
    if (p.h == 1 && r.between(0, 3)) p.x_strides[2] = 1;
    p.y_nhwc = sizes == Sizes::deep ? seed % 2 : r.between(0, 1);
    p.weight = weight.data();
    p.epilogue = o.e;
  }
  std::vector<char> output() const { return std::vector<char>(size_t(m * p.oc * size_of(o.out_type))); }

 private:
  // Padding that the image is too small for, and a kernel that is larger than the padded image.
  void shrink_to_fit() {
    if (!fits(p.pad_mode, std::max(p.pad_top, p.pad_bottom), p.h)) p.pad_top = p.pad_bottom = 0;
    if (!fits(p.pad_mode, std::max(p.pad_left, p.pad_right), p.w)) p.pad_left = p.pad_right = 0;
    p.kh = std::min(p.kh, (p.padded_h() - 1) / p.dilation_h + 1);
    p.kw = std::min(p.kw, (p.padded_w() - 1) / p.dilation_w + 1);
  }
};

struct PoolCase {
  Pool2dProblem p;
  std::vector<int8_t> x;

  explicit PoolCase(uint64_t seed) {
    Random r{seed};
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
    x = ints<int8_t>(r, p.batch * p.h * p.w * p.c, -128, 127);
    p.x = x.data();
  }
  std::vector<char> output() const { return std::vector<char>(size_t(p.batch * p.oh * p.ow * p.c)); }
};

// Planes or pixels, or a view with gaps, of finite floats: which NaN comes of a NaN is the processor's own.
struct MeanCase {
  MeanProblem p;
  std::vector<float> x;

  explicit MeanCase(uint64_t seed) {
    Random r{seed};
    p.batch = r.between(1, 3);
    p.c = size(r, 40, 100, 300);
    p.h = r.between(1, 9);
    p.w = r.between(1, 9);
    const int64_t gap = r.between(0, 1);
    const int64_t pixel = p.c + gap, plane = p.h * p.w + gap;
    const int64_t strides[2][4] = {{p.h * p.w * pixel, 1, p.w * pixel, pixel}, {p.c * plane, plane, p.w, 1}};
    std::memcpy(p.x_strides, strides[r.between(0, 1)], sizeof p.x_strides);
    x = reals(r, p.batch * (p.h * p.w + gap) * pixel, -3, 3);
    for (float& v : x) v = r.between(0, 20) ? v : r.between(0, 1) ? 1e20f * v : -0.0f;
    p.x = x.data();
  }
  std::vector<char> output() const { return std::vector<char>(size_t(p.batch * p.c * 4)); }
};

struct LookupCase {
  LookupProblem p;
  std::vector<int8_t> x, table;

  explicit LookupCase(uint64_t seed) {
    Random r{seed};
    p.count = size(r, 100, 4000, 20000);
    table = ints<int8_t>(r, 256, -128, 127);
    x = ints<int8_t>(r, p.count, -128, 127);
    p.table = table.data();
    p.x = x.data();
  }
  std::vector<char> output() const { return std::vector<char>(size_t(p.count)); }
};

struct QuantizeCase {
  int64_t rows, cols, rows_per_scale;
  DType type, back;          // of x, and of what it is dequantized to
  Range range;
  std::vector<char> x;
  std::vector<float> scale;
  std::vector<int32_t> zero;

  explicit QuantizeCase(uint64_t seed) {
    Random r{seed};
    rows = r.between(1, 9);
    cols = r.between(0, 5) ? r.between(1, 200) : r.between(1000, 20000);
    if (r.between(0, 1)) cols = round_up(cols, 8);
    type = kTypes[r.between(0, 2)];
    range = Range(r.between(0, 2));
    rows_per_scale = r.between(0, 1) ? 1 : rows;
    x = activations(r, rows * cols, type);
    scale = reals(r, rows, 0.001f, 0.1f);
    zero = ints<int32_t>(r, rows, -128, 127);
    back = kTypes[r.between(0, 2)];
  }
};

// float32 tokens in, float32 or int8 out.
struct NormCase {
  LayerNormProblem p;
  std::vector<char> x;
  std::vector<float> weight, bias;

  explicit NormCase(uint64_t seed) {
    Random r{seed};
    p.rows = r.between(1, 90);
    p.c = r.between(0, 3) ? r.between(1, 100) : 16 * r.between(10, 50);
    x = activations(r, p.rows * p.c, DType::f32);
    weight = reals(r, p.c, -2, 2), bias = reals(r, p.c, -1, 1);
    p.x.data = x.data(), p.weight = weight.data(), p.bias = bias.data();
    p.epsilon = 1e-5f;
    p.epilogue.out_type = r.between(0, 1) ? DType::f32 : DType::s8;
    p.epilogue.out_inv_scale = 20;
    p.epilogue.out_zero = int32_t(r.between(-128, 127));
  }
  std::vector<char> output() const { return std::vector<char>(size_t(p.rows * p.c * size_of(p.epilogue.out_type))); }
};

struct AttentionCase {
  AttentionProblem p;
  std::vector<char> x;

  explicit AttentionCase(uint64_t seed) {
    Random r{seed};
    p.batch = r.between(1, 2);
    p.q_tokens = p.k_tokens = r.between(1, 90);
    p.heads = p.kv_heads = r.between(1, 4);
    p.width = p.v_width = r.between(0, 1) ? r.between(1, 70) : 16 * r.between(1, 4);
    const int64_t c = p.heads * p.width;
    x = activations(r, p.batch * p.q_tokens * 3 * c, DType::f32);
    const float* tokens = reinterpret_cast<const float*>(x.data());
    p.q.data = tokens, p.k.data = tokens + c, p.v.data = tokens + 2 * c;
    p.q_step = p.k_step = p.v_step = 3 * c;
    p.exponent = 0.2f;
    p.epilogue.out_type = r.between(0, 1) ? DType::f32 : DType::s8;
    p.epilogue.out_inv_scale = 60;
    p.epilogue.out_zero = int32_t(r.between(-128, 127));
  }
  std::vector<char> output() const { return std::vector<char>(size_t(p.batch * p.q_tokens * p.heads * p.width * size_of(p.epilogue.out_type))); }
};

// What a quantize test compares: q, what it is dequantized to, and the scales.
inline std::vector<char> joined(std::vector<char> q, const std::vector<char>& y, const std::vector<float>& scale) {
  q.insert(q.end(), y.begin(), y.end());
  const char* scales = reinterpret_cast<const char*>(scale.data());
  q.insert(q.end(), scales, scales + scale.size() * sizeof(float));
  return q;
}

}  // namespace qk
