// Numbers of a column joined down the rows: lanes are neighbouring columns, sums of four vectors stay in registers.
#pragma once
#include "operand.h"

namespace qk {
namespace {

// Calls four(c) for four vectors of columns, then one(c, left) for one; the last ends where the columns do.
template <class V, class Four, class One>
QK_INLINE void for_columns(int64_t columns, Four four, One one) {
  constexpr int64_t W = V::width;
  int64_t c = 0;
  for (; c + 4 * W <= columns; c += 4 * W) four(c);
  for (; c < columns; c += W) one(c + W > columns && columns > W ? columns - W : c, columns < W ? columns : W);
}

// store(c, total) for every vector of columns, total = ((start + load(0, 0, c)) + load(0, 1, c)) + ... by `join`, over
// lines of pixels; load(line, pixel, c, left).
template <class V, class T, class Load, class Join, class Store>
QK_INLINE void join_pixels(int64_t columns, int64_t lines, int64_t pixels, T start, Load load, Join join, Store store) {
  for_columns<V>(
      columns,
      [&](int64_t c) QK_LAMBDA {
        T total[4] = {start, start, start, start};
        for (int64_t i = 0; i < lines; ++i)
          for (int64_t j = 0; j < pixels; ++j)
#pragma GCC unroll 4
            for (int v = 0; v < 4; ++v) total[v] = join(total[v], load(i, j, c + v * V::width, V::width));
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) store(c + v * V::width, total[v], V::width);
      },
      [&](int64_t c, int64_t left) QK_LAMBDA {
        T total = start;
        for (int64_t i = 0; i < lines; ++i)
          for (int64_t j = 0; j < pixels; ++j) total = join(total, load(i, j, c, left));
        store(c, total, left);
      });
}

// The sum of an operand's pixels, of which the first lies at `at`: of float32 in their order, of int8 exactly, then scaled.
template <class V, class Store>
QK_INLINE void sum_pixels(const Operand& x, int64_t at, int64_t line, int64_t pixel, int64_t columns, int64_t lines, int64_t pixels, Store store) {
  if (x.type == DType::f32) {
    const float* p = static_cast<const float*>(x.data) + at;
    join_pixels<V>(columns, lines, pixels, V::set1(0.0f),
                   [=](int64_t i, int64_t j, int64_t c, int64_t left) QK_LAMBDA { return load_some<V>(p + i * line + j * pixel + c, left); },
                   [](typename V::F a, typename V::F b) QK_LAMBDA { return V::add(a, b); }, store);
    return;
  }
  const int8_t* p = static_cast<const int8_t*>(x.data) + at;
  const auto mask = V::set1i(x.mask), zeros = V::set1i(int32_t(lines * pixels) * x.zero);
  const auto scale = V::set1(x.scale);
  join_pixels<V>(columns, lines, pixels, V::set1i(0),
                 [=](int64_t i, int64_t j, int64_t c, int64_t left) QK_LAMBDA { return V::xori(load_some<V>(p + i * line + j * pixel + c, left), mask); },
                 [](typename V::I a, typename V::I b) QK_LAMBDA { return V::addi(a, b); },
                 [=](int64_t c, typename V::I total, int64_t left) QK_LAMBDA { store(c, V::mul(V::to_float(V::subi(total, zeros)), scale), left); });
}

}  // namespace
}  // namespace qk
