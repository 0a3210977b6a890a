// One number after the other, of one value or of two: lanes are neighbours in memory.
#pragma once
#include "functions.h"
#include "operand.h"

namespace qk {
namespace {

constexpr int64_t kBlock = 512;  // values at hand in L1

template <class V>
void unary(const UnaryProblem& p, int64_t begin, int64_t end) {
  const auto finish = Finisher<V>::make(p.epilogue);
  const auto parameter = V::set1(p.parameter);
  const int64_t item = size_of(p.epilogue.out_type);
  with_function(p.function, [&](auto tag) QK_LAMBDA {
    float block[kBlock];
    for (int64_t i = begin; i < end; i += kBlock) {
      const int64_t count = end - i < kBlock ? end - i : kBlock;
      const float* x = as_floats<V>(p.x, i, count, block);
      store_run<V>(finish, count, static_cast<char*>(p.y) + i * item, [=](int64_t at, int64_t left) QK_LAMBDA {
        return value_of<V, decltype(tag)::function>(load_some<V>(x + at, left), parameter);
      });
    }
  });
}

template <class V, BinaryOp op>
QK_INLINE typename V::F applied(typename V::F a, typename V::F b) {
  if constexpr (op == BinaryOp::add) return V::add(a, b);
  else if constexpr (op == BinaryOp::sub) return V::sub(a, b);
  else if constexpr (op == BinaryOp::mul) return V::mul(a, b);
  else if constexpr (op == BinaryOp::div) return V::div(a, b);
  else if constexpr (op == BinaryOp::max) return V::max(a, b);
  else return V::min(a, b);
}

// A row's operand: values side by side, or one that is repeated.
QK_INLINE Operand of_row(const Operand& o, int64_t at, int64_t step, int64_t columns, float* block) {
  Operand row = o;
  if (step) {
    row.data = static_cast<const char*>(o.data) + at * size_of(o.type);
    return row;
  }
  row.data = block, row.type = DType::f32;
  const float v = float_at(o, at);
  for (int64_t i = 0; i < columns && i < kBlock; ++i) block[i] = v;
  return row;
}

template <class V, BinaryOp op, class A, class B>
QK_INLINE void join_run(const Finisher<V>& finish, const A a, const B b, int64_t count, void* y) {
  store_run<V>(finish, count, y, [=](int64_t i, int64_t left) QK_LAMBDA { return applied<V, op>(a(i, left), b(i, left)); });
}

template <class V, BinaryOp op>
void binary_rows(const BinaryRows& r) {
  const auto finish = Finisher<V>::make(*r.epilogue);
  const int64_t item = size_of(r.epilogue->out_type), each = r.a_step && r.b_step ? r.columns : kBlock;
  float a_block[kBlock], b_block[kBlock];
  for (int64_t row = 0; row < r.rows; ++row) {
    const Operand a = of_row(r.a, row * r.a_row, r.a_step, r.columns, a_block);
    const Operand b = of_row(r.b, row * r.b_row, r.b_step, r.columns, b_block);
    for (int64_t c = 0; c < r.columns; c += each) {
      char* y = static_cast<char*>(r.y) + (row * r.columns + c) * item;
      const int64_t count = r.columns - c < each ? r.columns - c : each, a_at = c * r.a_step, b_at = c * r.b_step;
      with_run<V>(a, a_at, [&](auto left) QK_LAMBDA {
        with_run<V>(b, b_at, [&](auto right) QK_LAMBDA { join_run<V, op>(finish, left, right, count, y); });
      });
    }
  }
}

// Rows that an operand repeats become rows of as many repetitions as a block holds: few ends, which cost more than vectors.
template <class V>
QK_INLINE BinaryRows widened(const BinaryRows& r, float* block) {
  const bool a_repeats = r.a_row == 0 && r.a_step == 1, b_repeats = r.b_row == 0 && r.b_step == 1;
  const int64_t times = r.columns % V::width || r.columns < 4 * V::width ? kBlock / r.columns : 1;
  const bool whole = a_repeats ? r.b_row == r.columns && r.b_step == 1 : r.a_row == r.columns && r.a_step == 1;
  if (a_repeats == b_repeats || !whole || times < 2 || r.rows < times) return r;
  Operand wide = a_repeats ? r.a : r.b;
  const float* once = as_floats<V>(wide, 0, r.columns, block);
  for (int64_t i = once == block ? r.columns : 0; i < times * r.columns; ++i) block[i] = once[i % r.columns];
  wide.data = block, wide.type = DType::f32;
  BinaryRows w = r;
  (a_repeats ? w.a : w.b) = wide;
  (a_repeats ? w.b_row : w.a_row) *= times;
  w.columns *= times, w.rows /= times;
  return w;
}

template <class V>
QK_INLINE void binary_whole(const BinaryRows& r) {
  switch (r.op) {
    case BinaryOp::add: return binary_rows<V, BinaryOp::add>(r);
    case BinaryOp::sub: return binary_rows<V, BinaryOp::sub>(r);
    case BinaryOp::mul: return binary_rows<V, BinaryOp::mul>(r);
    case BinaryOp::div: return binary_rows<V, BinaryOp::div>(r);
    case BinaryOp::max: return binary_rows<V, BinaryOp::max>(r);
    case BinaryOp::min: return binary_rows<V, BinaryOp::min>(r);
  }
}

template <class V>
void binary(const BinaryRows& r) {
  float block[kBlock];
  const BinaryRows wide = widened<V>(r, block);
  binary_whole<V>(wide);
  const int64_t done = wide.rows * (wide.columns / r.columns);  // rows of r
  if (done == r.rows) return;
  BinaryRows rest = r;
  rest.rows = r.rows - done;
  rest.a.data = static_cast<const char*>(r.a.data) + done * r.a_row * size_of(r.a.type);
  rest.b.data = static_cast<const char*>(r.b.data) + done * r.b_row * size_of(r.b.type);
  rest.y = static_cast<char*>(r.y) + done * r.columns * size_of(r.epilogue->out_type);
  binary_whole<V>(rest);
}

}  // namespace
}  // namespace qk
