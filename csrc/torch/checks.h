// Argument checks: one sentence, the operator and the values at fault.
#pragma once
#include <sstream>
#include <stdexcept>
#include <string>

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include "../core/problem.h"
#include "../core/scale.h"

namespace qk {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class... Parts>
[[noreturn]] void fail(const char* op, const Parts&... parts) {
  std::ostringstream text;
  text << "qkernels." << op << ": ";
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

template <class... Parts>
void check(bool condition, const char* op, const Parts&... parts) {
  if (!condition) [[unlikely]] fail(op, parts...);
}

inline const char* name(ScalarType t) {
  switch (t) {
    case ScalarType::Float: return "float32";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Char: return "int8";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Double: return "float64";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    default: return "another dtype";
  }
}

inline std::string shape(const Tensor& t) {
  std::ostringstream text;
  text << '[';
  for (int64_t i = 0; i < t.dim(); ++i) text << (i ? ", " : "") << t.size(i);
  text << ']';
  return text.str();
}

inline DType dtype_of(const char* op, const char* what, ScalarType t) {
  switch (t) {
    case ScalarType::Float: return DType::f32;
    case ScalarType::Half: return DType::f16;
    case ScalarType::BFloat16: return DType::bf16;
    case ScalarType::Char: return DType::s8;
    default: fail(op, what, " is ", name(t), "; float32, float16, bfloat16 and int8 are supported");
  }
}

inline std::string device(const Tensor& t) {
  return t.is_cpu() ? "the CPU" : (t.is_cuda() ? "cuda:" : "device ") + std::to_string(t.get_device_index());
}

inline void check_beside(const char* op, const char* what, const Tensor& t, const Tensor& x) {
  check(t.is_cpu() == x.is_cpu() && t.get_device_index() == x.get_device_index(), op, what, " is on ", device(t),
        ", but x is on ", device(x));
}

// Values are looked at where that does not wait for a device.
inline const float* check_scales(const char* op, const char* what, const Tensor& t, int64_t count, const Tensor& x) {
  check_beside(op, what, t, x);
  check(t.scalar_type() == ScalarType::Float, op, what, " is ", name(t.scalar_type()), "; it must be float32");
  check(t.numel() == count, op, what, " has ", t.numel(), " values; ", count, " are needed");
  check(t.is_contiguous(), op, what, " must be contiguous");
  const float* p = static_cast<const float*>(t.const_data_ptr());
  if (!t.is_cpu()) return p;
  if (!are_scales(p, count)) [[unlikely]]
    for (int64_t i = 0; i < count; ++i)
      check(is_scale(p[i]), op, what, "[", i, "] is ", p[i], "; scales and their inverses are finite and above 0");
  return p;
}

inline const int32_t* check_zero_points(const char* op, const char* what, const Tensor& t, int64_t count, const Tensor& x) {
  check_beside(op, what, t, x);
  check(t.scalar_type() == ScalarType::Int, op, what, " is ", name(t.scalar_type()), "; it must be int32");
  check(t.numel() == count, op, what, " has ", t.numel(), " values; ", count, " are needed, as many as scales");
  check(t.is_contiguous(), op, what, " must be contiguous");
  const int32_t* p = static_cast<const int32_t*>(t.const_data_ptr());
  if (!t.is_cpu()) return p;
  for (int64_t i = 0; i < count; ++i)
    check(p[i] >= -128 && p[i] <= 127, op, what, "[", i, "] is ", p[i], "; zero points are in [-128, 127]");
  return p;
}

inline int32_t check_zero_point(const char* op, const char* what, int64_t value) {
  check(value >= -128 && value <= 127, op, what, " is ", value, "; zero points are in [-128, 127]");
  return int32_t(value);
}

}  // namespace qk
