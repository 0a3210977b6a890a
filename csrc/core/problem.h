// What a kernel is asked to do: plain structs, every field with its shape and unit.
// Nothing here knows torch, CUDA or threads, so that an operator and a step of a program can ask for the same.
// A mask of -128 turns int8 into unsigned bytes, 128 higher: what some kernels read, so that within a model nobody has
// to turn them at every step.
#pragma once
#include <cstdint>

namespace qk {

enum class DType : uint8_t { f32, f16, bf16, s8, s64 };
constexpr const char* kDTypeNames[] = {"float32", "float16", "bfloat16", "int8", "int64", nullptr};

constexpr int64_t size_of(DType t) { return t == DType::f32 ? 4 : t == DType::s8 ? 1 : t == DType::s64 ? 8 : 2; }

// How float activations become int8. `given`: x is int8 already, or the scales are known (static).
enum class Range : uint8_t { given, dynamic_symmetric, dynamic_asymmetric };
constexpr const char* kRangeNames[] = {"given", "dynamic_symmetric", "dynamic_asymmetric", nullptr};

// Functions of one number, docs/numerics.md; some take a parameter.
#define QK_FUNCTIONS(F)                                                                      \
  F(identity) F(silu) F(gelu) F(gelu_tanh) F(hardswish) F(hardsigmoid) F(sigmoid) F(tanh) F(elu) F(leaky_relu) F(exp) F(log) \
  F(sqrt) F(rsqrt) F(reciprocal) F(abs) F(neg) F(square) F(softplus) F(mish)
#define QK_FUNCTION_NAME(name) name,
enum class Function : uint8_t { QK_FUNCTIONS(QK_FUNCTION_NAME) };
#undef QK_FUNCTION_NAME
#define QK_FUNCTION_NAME(name) #name,
constexpr const char* kFunctionNames[] = {QK_FUNCTIONS(QK_FUNCTION_NAME) nullptr};
#undef QK_FUNCTION_NAME
constexpr int kFunctions = int(sizeof kFunctionNames / sizeof *kFunctionNames) - 1;

// From int32 sums to stored bytes; the contract is docs/numerics.md, the arithmetic core/epilogue.h.
struct Epilogue {
  const float* x_scale = nullptr;       // [ceil(M / rows_per_scale)], finite, > 0
  const int32_t* x_zero = nullptr;      // the same length, in [-128, 127]
  int64_t rows_per_scale = 1;           // rows of C that share one x_scale: M (tensor), 1 (token), OH*OW (image)
  const float* w_scale = nullptr;       // [N], finite, > 0
  const int32_t* w_sum = nullptr;       // [N], S[n] = sum_k w[n,k]
  const float* bias = nullptr;          // [N] or null
  const void* residual = nullptr;       // [M,N] or null, added before the clamp
  DType residual_type = DType::f32;
  int8_t residual_mask = 0;             // what an int8 residual is XORed with: 0 or -128
  int64_t residual_stride = 0;          // elements between rows
  float residual_scale = 1.0f;          // of an int8 residual
  int32_t residual_zero = 0;
  Function activation = Function::identity;  // of programs on the CPU: after the residual, before the clamp
  float parameter = 1.0f;               // of the activation
  float lo = -__builtin_inff();         // clamp: ReLU is [0, inf], ReLU6 [0, 6]
  float hi = __builtin_inff();
  DType out_type = DType::f32;
  float out_inv_scale = 1.0f;           // 1 / scale of an int8 output
  int32_t out_zero = 0;
  int8_t out_mask = 0;                  // what an int8 output is XORed with
};

// C[M,N] = epilogue(x[M,K] * w[N,K]^T)
struct GemmProblem {
  int64_t m = 0, n = 0, k = 0;          // k <= kMaxK
  const void* x = nullptr;              // [M,K], rows contiguous
  DType x_type = DType::s8;
  int8_t x_mask = 0;                    // what an int8 x is XORed with
  int64_t x_stride = 0;                 // elements between rows
  Range range = Range::given;           // dynamic: one scale a row, found while packing
  const int8_t* weight = nullptr;       // packed, core/layout.h
  void* c = nullptr;                    // [M,N]
  int64_t c_stride = 0;                 // elements between rows
  Epilogue epilogue;
};

// Whether the pixels [n, c, h, w] lie channels together and row by row, as [n, h, w, c]; axes of size 1 may have any stride.
constexpr bool lies_as_pixels(const int64_t* sizes, const int64_t* strides) {
  constexpr int axes[] = {1, 3, 2, 0};
  int64_t expected = 1;
  for (int axis : axes) {
    if (sizes[axis] == 1) continue;
    if (strides[axis] != expected) return false;
    expected *= sizes[axis];
  }
  return true;
}

enum class PadMode : uint8_t { zeros, reflect, replicate, circular };
constexpr const char* kPadModeNames[] = {"zeros", "reflect", "replicate", "circular", nullptr};

// y[n,oh,ow,oc], weights [OC,KH,KW,C/groups]; `zeros` pads with the zero point.
struct Conv2dProblem {
  int64_t batch = 0, h = 0, w = 0, c = 0;
  int64_t oc = 0, kh = 1, kw = 1, groups = 1;
  int64_t stride_h = 1, stride_w = 1, dilation_h = 1, dilation_w = 1;
  int64_t pad_top = 0, pad_bottom = 0, pad_left = 0, pad_right = 0;
  PadMode pad_mode = PadMode::zeros;
  const void* x = nullptr;
  DType x_type = DType::s8;
  int8_t x_mask = 0;                    // what an int8 x is XORed with
  int64_t x_strides[4] = {0, 0, 0, 0};  // elements, order n, c, h, w; any strides
  bool x_padded = false;                // int8 pixels with the padding around them: nothing has to be written there
  Range range = Range::given;           // dynamic: one scale an image
  const int8_t* weight = nullptr;       // packed, core/layout.h
  const int16_t* winograd = nullptr;    // the same, transformed (core/winograd.h), where somebody keeps it, or will when it runs
  int64_t weight_sum = 0;               // the largest sum of absolute weights of an output channel; 0: unknown
  void* y = nullptr;
  bool y_nhwc = true;                   // else y[n,oc,oh,ow]; both contiguous
  int64_t y_border = 0;                 // pixels on every side of an int8 NHWC y that get its zero point; y is the first inside
  Epilogue epilogue;                    // rows are output pixels; residual is NHWC

  int64_t padded_h() const { return h + pad_top + pad_bottom; }
  int64_t padded_w() const { return w + pad_left + pad_right; }
  int64_t oh() const { return (padded_h() - dilation_h * (kh - 1) - 1) / stride_h + 1; }
  int64_t ow() const { return (padded_w() - dilation_w * (kw - 1) - 1) / stride_w + 1; }
  int64_t y_row() const { return (ow() + 2 * y_border) * oc; }  // elements from one line of y to the next
  int64_t y_image() const { return (oh() + 2 * y_border) * y_row(); }
};

// NHWC in and out, int8 of the same scale and zero point, or a maximum of f32. Windows are clipped to the image.
struct Pool2dProblem {
  int64_t batch = 0, h = 0, w = 0, c = 0, oh = 0, ow = 0;
  int64_t kh = 1, kw = 1, stride_h = 1, stride_w = 1, pad_h = 0, pad_w = 0, dilation_h = 1, dilation_w = 1;
  bool average = false;                 // else maximum; average: dilation is 1
  bool count_include_pad = true;        // padding counts as real 0, that is x_zero
  int32_t x_zero = 0;
  DType type = DType::s8;
  int8_t mask = 0;                      // what int8 x and y are XORed with
  const void* x = nullptr;              // [batch,h,w,c]
  void* y = nullptr;                    // [batch,oh,ow,c]
};

// y[n,c] = sum of the image's pixels * (1 / their number), f32, added in rows from the first pixel to the last.
struct MeanProblem {
  int64_t batch = 0, h = 0, w = 0, c = 0;
  const float* x = nullptr;
  int64_t x_strides[4] = {0, 0, 0, 0};  // elements, order n, c, h, w; any strides
  float* y = nullptr;
};

// y[i] = table[x[i] + 128]: any function of int8 to int8.
struct LookupProblem {
  int64_t count = 0;
  const int8_t* table = nullptr;  // [256]
  int8_t mask = 0;                // what x and y are XORed with
  const int8_t* x = nullptr;
  int8_t* y = nullptr;
};

// Values that are read as float32: float32 itself, or (q - zero) * scale of int8.
struct Operand {
  const void* data = nullptr;
  DType type = DType::f32;
  int8_t mask = 0;                      // what int8 values are XORed with
  float scale = 1.0f;
  int32_t zero = 0;
};

// y[i] = function(x[i])
struct UnaryProblem {
  int64_t count = 0;
  Function function = Function::identity;
  float parameter = 1.0f;
  Operand x;
  void* y = nullptr;
  Epilogue epilogue;                    // clamp, the output's type and scale
};

enum class BinaryOp : uint8_t { add, sub, mul, div, max, min };
constexpr const char* kBinaryOpNames[] = {"add", "sub", "mul", "div", "max", "min", nullptr};

// y[i,j] = a[i,j] op b[i,j], in float32.
struct BinaryProblem {
  int64_t sizes[4] = {0, 0, 0, 0};      // of y, contiguous
  BinaryOp op = BinaryOp::add;
  Operand a, b;
  int64_t a_strides[4] = {}, b_strides[4] = {};  // elements; 0 along an axis that is repeated; along the last one 0 or 1
  void* y = nullptr;
  Epilogue epilogue;                    // clamp, the output's type and scale
};

// y[r,c] = x[r,c] * weight[c] + bias[c], in two roundings: the product and the sum of a binary step.
struct AffineProblem {
  int64_t rows = 0, c = 0;
  Operand x;                            // [rows,c]
  const float *weight = nullptr, *bias = nullptr;  // [c]
  void* y = nullptr;                    // [rows,c]
  Epilogue epilogue;                    // clamp, the output's type and scale
};

// y[r,c] = (x[r,c] - mean) / sqrt(variance + epsilon) * weight[c] + bias[c], of each row; the order is docs/numerics.md.
struct LayerNormProblem {
  int64_t rows = 0, c = 0;
  Operand x;                            // [rows,c]
  bool centered = true;                 // else the mean counts as 0: RMS normalization
  const float* weight = nullptr;        // [c]
  const float* bias = nullptr;          // [c], or null: 0
  float epsilon = 0.0f;                 // finite, >= 0
  void* y = nullptr;                    // [rows,c]
  Epilogue epilogue;                    // the output's type and scale
};

// The same over the pixels of an image and the channels of a group together.
struct GroupNormProblem {
  int64_t batch = 0, h = 0, w = 0, c = 0, groups = 1;
  Operand x;                            // [batch,h,w,c]
  const float *weight = nullptr, *bias = nullptr;  // [c]
  float epsilon = 0.0f;                 // finite, >= 0
  void* y = nullptr;                    // [batch,h,w,c]
  Epilogue epilogue;                    // the output's type and scale
};

// y[r,c] = e^x[r,c] / sum of the row's, or the logarithm of that.
struct SoftmaxProblem {
  int64_t rows = 0, c = 0;
  Operand x;                            // [rows,c]
  bool log = false;
  void* y = nullptr;                    // [rows,c]
  Epilogue epilogue;                    // the output's type and scale
};

enum class ReduceOp : uint8_t { mean, sum, max, min };
constexpr const char* kReduceOpNames[] = {"mean", "sum", "max", "min", nullptr};

// x [outer,count,rows,c] over `count`, and over c as well where `over_c`, to y [outer,rows,c] or [outer,rows].
struct ReduceProblem {
  int64_t outer = 0, count = 1, rows = 1, c = 0;
  bool over_c = false;
  ReduceOp op = ReduceOp::mean;
  Operand x;
  void* y = nullptr;
  Epilogue epilogue;                    // the output's type and scale
};

// Means over windows of an image, NHWC: windows of a fixed size, clipped to the image, or as many as y has pixels.
struct AveragePoolProblem {
  int64_t batch = 0, h = 0, w = 0, c = 0, oh = 0, ow = 0;
  bool adaptive = false;                // window i of o covers [floor(i * h / o), ceil((i + 1) * h / o))
  int64_t kh = 1, kw = 1, stride_h = 1, stride_w = 1, pad_h = 0, pad_w = 0;
  bool count_include_pad = true;        // padding counts as real 0
  Operand x;                            // [batch,h,w,c]
  void* y = nullptr;                    // [batch,oh,ow,c]
  Epilogue epilogue;                    // the output's type and scale
};

// y[n,i,h] = sum_j softmax_j(scale * q[n,i,h] . k[n,j,h'] + bias) * v[n,j,h'] of every head h; head h reads the keys and
// values of h' = h / (heads / kv_heads). The order is docs/numerics.md.
struct AttentionProblem {
  int64_t batch = 0, q_tokens = 0, k_tokens = 0, heads = 0, kv_heads = 0, width = 0, v_width = 0;  // of a head
  Operand q, k, v;                      // the first head of the first token; heads lie side by side
  int64_t q_step = 0, k_step = 0, v_step = 0;  // elements between tokens
  float exponent = 1.0f;                // log2(e) * scale, finite, > 0
  bool causal = false;                  // token i reads keys 0 to i
  bool int8_products = false;           // of q and k, and of weights and v; k_tokens <= kMaxK then
  const float* bias = nullptr;          // added to the scaled scores, [bias_n,heads,q_tokens,k_tokens]; null: none
  int64_t bias_n = 1;                   // image n reads the bias of n % bias_n
  int64_t bias_strides[3] = {0, 0, 0};  // elements, of n, heads, q_tokens; 0: repeated
  void* y = nullptr;                    // [batch,q_tokens,heads,v_width]
  Epilogue epilogue;                    // the output's type and scale

  // What is added to the scores of a token; null: nothing.
  const float* bias_of(int64_t image, int64_t head, int64_t token) const {
    return bias ? bias + image % bias_n * bias_strides[0] + head * bias_strides[1] + token * bias_strides[2] : nullptr;
  }
};

// y[M,N] = fma(sum_k x[m,k] * float(w[n,k]), w_scale[n], bias[n]); the sum's order is docs/numerics.md.
using WeightOnlyProblem = GemmProblem;  // x float, never quantized; x_scale, x_zero and w_sum unused

constexpr int64_t kMaxK = 65535;        // 255 * 127 * K stays below 2^31
constexpr int64_t kMaxExtent = 0x7fffffff;  // kernel, stride, padding, dilation: products of two stay below 2^62
constexpr int64_t kMaxWindow = 1 << 24;  // values averaged by a pool: 128 of each stay within 2^31

}  // namespace qk
