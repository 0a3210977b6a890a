// The numerics contract (docs/numerics.md) in code: one definition for every vector width and device.
//
// V is a vector type: V::F floats, V::I int32, V::width lanes. Its operations are exact IEEE f32, and
//   V::max(a, b) = a > b ? a : b    V::min(a, b) = a < b ? a : b    (b where unordered, as maxps does)
// so that a NaN becomes the lower bound, everywhere.
#pragma once
#include "functions.h"
#include "problem.h"

namespace qk {
namespace {

// q = saturate(round_half_even(x * inv_scale) + zero); the bounds are integers, so clamping first is the same.
template <class V>
struct Quantizer {
  typename V::F inv_scale, lo, hi;
  typename V::I zero;

  QK_INLINE Quantizer make(float inv_scale, int32_t zero) {
    return {V::set1(inv_scale), V::set1(float(-128 - zero)), V::set1(float(127 - zero)), V::set1i(zero)};
  }
  QK_METHOD typename V::I operator()(typename V::F x) const {
    return V::addi(V::round(V::min(V::max(V::mul(x, inv_scale), lo), hi)), zero);
  }
};

// Scale and zero point of one row, image or tensor from its smallest and largest value (both with 0 included).
struct ScaleZero {
  float scale;
  int32_t zero;
};

constexpr float kTinyRange = 1e-30f;     // below it, everything quantizes to real 0 (and no denormals arise)
constexpr float kHugeRange = 3.4028235e38f;

QK_INLINE ScaleZero dynamic_scale(float lo, float hi, bool symmetric) {
  if (symmetric) {
    float amax = -lo > hi ? -lo : hi;
    amax = amax < kHugeRange ? amax : kHugeRange;
    return {amax < kTinyRange ? 1.0f : amax / 127.0f, 0};
  }
  lo = lo > -kHugeRange ? lo : -kHugeRange;
  hi = hi < kHugeRange ? hi : kHugeRange;
  const float range = hi - lo;
  if (range < kTinyRange) return {1.0f, 0};
  const float scale = range <= kHugeRange ? range / 255.0f : hi / 255.0f - lo / 255.0f;  // the difference overflows
  float zero = -128.0f - lo * (1.0f / scale);
  zero = zero > -128.0f ? zero : -128.0f;
  zero = zero < 127.0f ? zero : 127.0f;
  return {scale, int32_t(__builtin_rintf(zero))};
}

template <class V>
QK_INLINE typename V::F load_float(const void* p, int64_t i, DType type) {
  if (type == DType::f32) return V::load_f32(static_cast<const float*>(p) + i);
  if (type == DType::f16) return V::load_f16(static_cast<const uint16_t*>(p) + i);
  return V::load_bf16(static_cast<const uint16_t*>(p) + i);
}

enum class Residual { none, f32, s8 };

// Steps 2 to 5 of the contract for V::width neighbours: residual, activation, clamp, store. Built once for many of them, so that
// its constants stay in registers. An int8 output is clamped once, after its product: multiplying by inv_scale > 0
// keeps order, rounding included, so the clamp's bounds times inv_scale and the bounds of int8 become one pair.
template <class V>
struct Finisher {
  const Epilogue& e;
  typename V::F lo, hi, inv_scale;
  typename V::I zero;

  QK_INLINE Finisher make(const Epilogue& e) {
    float lo = e.lo, hi = e.hi;
    if (e.out_type == DType::s8) {
      const float least = float(-128 - e.out_zero), most = float(127 - e.out_zero);
      lo = lo * e.out_inv_scale > least ? lo * e.out_inv_scale : least;
      hi = hi * e.out_inv_scale > least ? hi * e.out_inv_scale : least;
      lo = lo < most ? lo : most;
      hi = hi < most ? hi : most;
    }
    return {e, V::set1(lo), V::set1(hi), V::set1(e.out_inv_scale), V::set1i(e.out_zero)};
  }

  QK_METHOD typename V::F clamp(typename V::F y) const { return V::min(V::max(y, lo), hi); }

  // q - zero of an int8 output, within [-128 - zero, 127 - zero].
  QK_METHOD typename V::I round(typename V::F y) const {
    return V::round(clamp(V::mul(y, inv_scale)));
  }

  QK_METHOD typename V::F add_residual(typename V::F y, const void* residual) const {
    if (e.residual_type != DType::s8) return V::add(y, load_float<V>(residual, 0, e.residual_type));
    return add_residual_s8(y, residual);
  }
  QK_METHOD typename V::F add_residual_s8(typename V::F y, const void* residual) const {
    const auto q = V::xori(V::load_s8(static_cast<const int8_t*>(residual)), V::set1i(e.residual_mask));
    return add_steps(y, V::to_float(V::subi(q, V::set1i(e.residual_zero))));
  }
  QK_METHOD typename V::F add_steps(typename V::F y, typename V::F steps) const { return V::add(y, V::mul(steps, V::set1(e.residual_scale))); }

  // The same where the type is known.
  template <Residual R>
  QK_METHOD typename V::F add(typename V::F y, const void* residual) const {
    if constexpr (R == Residual::f32) return V::add(y, V::load_f32(static_cast<const float*>(residual)));
    else if constexpr (R == Residual::s8) return add_residual_s8(y, residual);
    else return y;
  }

  // `residual` and `out` point at the first value; residual is null where there is none.
  QK_METHOD void whole(typename V::F y, const void* residual, void* out) const {
    if (residual) y = add_residual(y, residual);
    if constexpr (kHasFunctions<V>)
      if (e.activation != Function::identity) y = activated<V>(e.activation, e.parameter, y);
    switch (e.out_type) {
      case DType::f32: store<DType::f32>(y, out); break;
      case DType::f16: store<DType::f16>(y, out); break;
      case DType::bf16: store<DType::bf16>(y, out); break;
      case DType::s8: store<DType::s8>(y, out); break;
      case DType::s64: break;  // inputs of programs alone are
    }
  }
  // Steps 3 and 4 where the type is known.
  template <DType Out>
  QK_METHOD void store(typename V::F y, void* out) const {
    if constexpr (Out == DType::f32) V::store_f32(static_cast<float*>(out), clamp(y));
    else if constexpr (Out == DType::f16) V::store_f16(static_cast<uint16_t*>(out), clamp(y));
    else if constexpr (Out == DType::bf16) V::store_bf16(static_cast<uint16_t*>(out), clamp(y));
    else V::store_s8(static_cast<int8_t*>(out), V::xori(V::addi(round(y), zero), V::set1i(e.out_mask)));
  }

  // The last `count` < V::width columns: in and out through a small buffer. Kept out of the loops that call it.
  __attribute__((noinline)) void part(typename V::F y, int64_t count, const void* residual, void* out) const {
    alignas(64) char r[V::width * 4] = {};
    alignas(64) char o[V::width * 4];
    if (residual) __builtin_memcpy(r, residual, size_t(count * size_of(e.residual_type)));
    whole(y, residual ? r : nullptr, o);
    __builtin_memcpy(out, o, size_t(count * size_of(e.out_type)));
  }

  QK_METHOD const char* residual_at(int64_t m, int64_t n) const {
    if (!e.residual) return nullptr;
    return static_cast<const char*>(e.residual) + (m * e.residual_stride + n) * size_of(e.residual_type);
  }

  // V::width columns, or the `count` of them that exist.
  QK_METHOD void operator()(typename V::F y, const void* residual, int64_t count, void* out) const {
    if (count >= V::width) whole(y, residual, out);
    else part(y, count, residual, out);
  }
};

// Step 1: y = fma(float(acc - offset * S[n]), x_scale * w_scale[n], bias[n]) for V::width columns from n, and many
// rows: what rows with the same scale and offset share is computed once. `offset` is the zero point, plus what the
// kernel itself added to x. w_sum, w_scale and bias are readable up to a whole vector.
template <class V>
struct Dequantizer {
  typename V::I w_sum, correction;
  typename V::F w_scale, bias, scale;
  float x_scale = 0.0f;        // of `scale`; no row has it yet
  int32_t offset = 0;

  QK_INLINE Dequantizer make(const Epilogue& e, int64_t n) {
    return {V::load_i32(e.w_sum + n), V::set1i(0), V::load_f32(e.w_scale + n),
            e.bias ? V::load_f32(e.bias + n) : V::set1(0.0f), V::set1(0.0f)};
  }
  // For the rows that follow.
  QK_METHOD void use(float row_scale, int32_t row_offset) {
    if (row_scale == x_scale && row_offset == offset) return;
    x_scale = row_scale;
    offset = row_offset;
    scale = V::mul(V::set1(x_scale), w_scale);
    correction = V::muli(V::set1i(offset), w_sum);
  }
  QK_METHOD typename V::F operator()(typename V::I acc) const {
    return V::fma(V::to_float(V::subi(acc, correction)), scale, bias);
  }
};

}  // namespace
}  // namespace qk
