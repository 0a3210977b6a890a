// The end of a GEMM for four neighbouring channels of many rows: core/epilogue.h with all that rows share decided and computed
// before the first of them, and what they do not share loaded for several ahead. Made for the common cases: floats without a
// residual; int8 with one scale, with or without an int8 residual, as chained layers have it. Others, and rows that are left
// over, are finished one at a time.
#pragma once
#include "output.cuh"

namespace qk::cuda {
namespace {

constexpr int kRowsAhead = 4;

template <DType Out, bool HasResidual, bool OneScale>
struct RowsEnd {
  using V = Lanes<4>;

  const GemmArgs& g;
  Finisher<V> finish;
  int64_t n;
  V::I correction;           // minus the sums of the weight; with one scale, times x's zero point
  V::F scale, bias;          // of the weight; with one scale, times x's

  QK_INLINE RowsEnd make(const GemmArgs& g, int64_t n) {
    const Epilogue e = epilogue_of_group(g);
    RowsEnd end{g, Finisher<V>::make(g.epilogue), n, V::subi(V::set1i(0), V::load_i32(e.w_sum + n)), V::load_f32(e.w_scale + n),
                e.bias ? V::load_f32(e.bias + n) : V::set1(0.0f)};
    if constexpr (OneScale) {
      end.correction = V::muli(V::set1i(global_load<int32_t>(e.x_zero)), end.correction);
      end.scale = V::mul(V::set1(global_load<float>(e.x_scale)), end.scale);
    }
    return end;
  }

  // A row that a thread has come to.
  struct Place {
    uint32_t m;
    char* to;
    const int8_t* residual;
  };
  QK_METHOD Place at(int64_t m) const {
    return {uint32_t(m), static_cast<char*>(g.c) + (m * g.c_stride + n) * size_of(Out),
            static_cast<const int8_t*>(g.epilogue.residual) + (m * g.epilogue.residual_stride + n)};
  }
  QK_METHOD void advance(Place& p, int rows) const {
    p.m += uint32_t(rows);
    p.to += rows * (g.c_stride * size_of(Out));
    if constexpr (HasResidual) p.residual += rows * g.epilogue.residual_stride;
  }

  // The rows offset(i) behind a place, for i below kRowsAhead, whose sums are sums(i).
  template <class Offset, class Sums>
  QK_METHOD void rows(const Place& p, Offset offset, Sums sums) const {
    V::I acc[kRowsAhead];
    [[maybe_unused]] float x_scale[kRowsAhead];
    [[maybe_unused]] int32_t x_zero[kRowsAhead];
    [[maybe_unused]] uint32_t residual[kRowsAhead];
    QK_UNROLL for (int i = 0; i < kRowsAhead; ++i) {
      if constexpr (!OneScale) {
        const uint32_t index = g.scales.quotient(p.m + uint32_t(offset(i)));
        x_scale[i] = global_load<float>(g.epilogue.x_scale + index);
        x_zero[i] = global_load<int32_t>(g.epilogue.x_zero + index);
      }
      if constexpr (HasResidual) residual[i] = global_load<uint32_t>(p.residual + offset(i) * g.epilogue.residual_stride);
      acc[i] = sums(i);
    }
    char* to = p.to;
    QK_UNROLL for (int i = 0; i < kRowsAhead; ++i) {
      V::F y;
      if constexpr (OneScale) y = V::fma(V::to_float(V::addi(acc[i], correction)), scale, bias);
      else y = V::fma(V::to_float(V::addi(acc[i], V::muli(V::set1i(x_zero[i]), correction))), V::mul(V::set1(x_scale[i]), scale), bias);
      if constexpr (HasResidual) y = finish.add_steps(y, V::steps(residual[i], g.epilogue.residual_mask, g.epilogue.residual_zero));
      finish.template store<Out>(y, to);
      if (i + 1 < kRowsAhead) to += (offset(i + 1) - offset(i)) * (g.c_stride * size_of(Out));
    }
  }
};

template <bool OneScale, class Body>
QK_DEVICE void with_float_end(const GemmArgs& g, int64_t n, Body body) {
  switch (g.epilogue.out_type) {
    case DType::f32: return body(RowsEnd<DType::f32, false, OneScale>::make(g, n));
    case DType::f16: return body(RowsEnd<DType::f16, false, OneScale>::make(g, n));
    case DType::bf16: return body(RowsEnd<DType::bf16, false, OneScale>::make(g, n));
    default: return;
  }
}

// body(end) with the end that is made for the problem, if there is one.
template <class Body>
QK_DEVICE void with_rows_end(const GemmArgs& g, int64_t n, Body body) {
  const Epilogue& e = g.epilogue;
  const bool one_scale = g.scales.divisor >= g.m;
  if (e.out_type == DType::s8) {
    if (!one_scale) return;
    if (!e.residual) body(RowsEnd<DType::s8, false, true>::make(g, n));
    else if (e.residual_type == DType::s8) body(RowsEnd<DType::s8, true, true>::make(g, n));
  } else if (!e.residual) {
    if (one_scale) with_float_end<true>(g, n, body);
    else with_float_end<false>(g, n, body);
  }
}

}  // namespace
}  // namespace qk::cuda
