// Tensors as the front sees them, and what the operators of all devices do with tensors: allocate, copy what does not lie
// as a driver reads it, say torch's errors.
#pragma once
#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>

#include "../front/operands.h"

namespace qk {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;
using MaybeType = std::optional<ScalarType>;
using Ints = std::vector<int64_t>;

inline Type type_of(ScalarType t) {
  switch (t) {
    case ScalarType::Float: return {Element::f32, "float32"};
    case ScalarType::Half: return {Element::f16, "float16"};
    case ScalarType::BFloat16: return {Element::bf16, "bfloat16"};
    case ScalarType::Char: return {Element::s8, "int8"};
    case ScalarType::Int: return {Element::i32, "int32"};
    case ScalarType::Byte: return {Element::other, "uint8"};
    case ScalarType::Double: return {Element::other, "float64"};
    case ScalarType::Long: return {Element::s64, "int64"};
    default: return {Element::other, "another dtype"};
  }
}

inline ScalarType scalar_type(DType t) {
  return t == DType::f32 ? ScalarType::Float : t == DType::f16 ? ScalarType::Half : t == DType::bf16 ? ScalarType::BFloat16 : ScalarType::Char;
}

inline Place place_of(const Tensor& t) {
  if (t.is_cpu()) return {};
  return {t.is_cuda() ? Place::cuda : Place::other, t.get_device_index()};
}

// `t` must outlive it.
inline Array view(const Tensor& t) {
  Array a;
  const auto sizes = t.sizes();
  a.axes = int64_t(sizes.size()), a.sizes = sizes.data();
  a.type = type_of(t.scalar_type());
  a.data = t.const_data_ptr();
  a.place = place_of(t);
  a.contiguous = t.is_contiguous();
  if (a.contiguous) set_contiguous_strides(a);
  else if (a.axes <= 4)
    for (int64_t i = 0; i < a.axes; ++i) a.strides[i] = t.stride(i);
  return a;
}

inline std::optional<Array> view(const MaybeTensor& t) { return t ? std::optional<Array>(view(*t)) : std::nullopt; }

// ---- errors

template <size_t N>
struct Text {
  char value[N];
  constexpr Text(const char (&text)[N]) { std::copy_n(text, N, value); }
};

// `function` as the operator `op`: a refusal becomes torch's RuntimeError, with the operator's name before it.
template <Text op, auto function>
struct Operator;
template <Text op, class R, class... A, R (*function)(A...)>
struct Operator<op, function> {
  static R call(A... arguments) {
    try {
      return function(std::forward<A>(arguments)...);
    } catch (const Refusal& refusal) {
      throw std::runtime_error(std::string("qkernels.") + op.value + ": " + refusal.what());
    }
  }
};

// ---- memory

// Beside x, uninitialised. By the C function: torch::stable::empty looks the operator up by its name at every call.
inline Tensor empty_beside(const Tensor& x, const Ints& size, ScalarType dtype, MemoryFormat format = MemoryFormat::Contiguous) {
  int64_t strides[64], step = 1, ndim = int64_t(size.size());
  const auto next = [&](int64_t axis) {
    strides[axis] = step;
    step *= std::max<int64_t>(size[size_t(axis)], 1);
  };
  if (format == MemoryFormat::ChannelsLast)
    for (int64_t axis : {1, 3, 2, 0}) next(axis);
  else
    for (int64_t axis = ndim; axis-- > 0;) next(axis);
  AtenTensorHandle tensor;
  const int32_t type = x.is_cpu() ? aoti_torch_device_type_cpu() : aoti_torch_device_type_cuda();
  const int32_t index = x.is_cpu() ? 0 : x.get_device_index();
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(ndim, size.data(), strides, int32_t(dtype), type, index, &tensor));
  return Tensor(tensor);
}

inline Tensor as_contiguous(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }

inline Ints sizes_of(const Tensor& x) { return Ints(x.sizes().begin(), x.sizes().end()); }

// The output follows the input: channels-last in, channels-last out.
inline MemoryFormat format_like(const Array& x) {
  return x.axes == 4 && !x.contiguous && lies_as_pixels(x) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

}  // namespace qk
