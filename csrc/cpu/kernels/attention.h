// Attention of one head: products of float32, a softmax a row between them.
//
//   scores[i][j] = q[i] . k[j]     keys packed as [tokens / 32][width][32]: transposed, lanes are tokens
//   softmax of each row            left undivided; 1 / its sum waits for the end
//   y[i] = scores[i] . v           values packed as [width / 32][tokens][32]: lanes are features
//
// Every sum of a product is one chain of fma in increasing k, so lanes and tiles do not show in the bits.
#pragma once
#include "softmax.h"

namespace qk {
namespace {

typedef float Four __attribute__((vector_size(16)));
typedef int32_t Four_of __attribute__((vector_size(16)));  // which of two Fours' elements

// x [4][4], rows `step` apart, transposed to rows of a panel of so many lanes.
template <int64_t Lanes>
QK_INLINE void transpose_four(const float* x, int64_t step, float* y) {
  Four row[4];
  for (int i = 0; i < 4; ++i) __builtin_memcpy(&row[i], x + i * step, 16);
  const Four low01 = __builtin_shuffle(row[0], row[1], Four_of{0, 4, 1, 5}), high01 = __builtin_shuffle(row[0], row[1], Four_of{2, 6, 3, 7});
  const Four low23 = __builtin_shuffle(row[2], row[3], Four_of{0, 4, 1, 5}), high23 = __builtin_shuffle(row[2], row[3], Four_of{2, 6, 3, 7});
  const Four column[4] = {__builtin_shuffle(low01, low23, Four_of{0, 1, 4, 5}), __builtin_shuffle(low01, low23, Four_of{2, 3, 6, 7}),
                          __builtin_shuffle(high01, high23, Four_of{0, 1, 4, 5}), __builtin_shuffle(high01, high23, Four_of{2, 3, 6, 7})};
  for (int i = 0; i < 4; ++i) __builtin_memcpy(y + i * Lanes, &column[i], 16);
}

// Up to a panel of tokens, `step` floats apart.
QK_INLINE void pack_keys(const float* x, int64_t step, int64_t count, int64_t width, float* y) {
  int64_t e = 0;
  if (count == HeadMemory::kPanel)
    for (; e + 4 <= width; e += 4)
      for (int64_t i = 0; i < HeadMemory::kPanel; i += 4) transpose_four<HeadMemory::kPanel>(x + i * step + e, step, y + e * HeadMemory::kPanel + i);
  for (; e < width; ++e)
    for (int64_t i = 0; i < HeadMemory::kPanel; ++i) y[e * HeadMemory::kPanel + i] = i < count ? x[i * step + e] : 0.0f;
}

// The same, to the places of these tokens among all `tokens`.
QK_INLINE void pack_values(const float* x, int64_t step, int64_t count, int64_t tokens, int64_t width, float* y) {
  for (int64_t e = 0; e < width; e += HeadMemory::kPanel, y += tokens * HeadMemory::kPanel) {
    const int64_t some = width - e < HeadMemory::kPanel ? width - e : HeadMemory::kPanel;
    for (int64_t j = 0; j < count; ++j) {
      float* to = y + j * HeadMemory::kPanel;
      if (some < HeadMemory::kPanel)
        for (int64_t i = 0; i < HeadMemory::kPanel; ++i) to[i] = i < some ? x[j * step + e + i] : 0.0f;
      else
        __builtin_memcpy(to, x + j * step + e, sizeof(float) * HeadMemory::kPanel);
    }
  }
}

// Rows of a head, `step` elements apart: where they lie, or as float32 in `memory`, when their step becomes `width`.
template <class V>
QK_INLINE const float* float_rows(const Operand& x, int64_t at, int64_t& step, int64_t rows, int64_t width, float* memory) {
  if (x.type == DType::f32) return static_cast<const float*>(x.data) + at;
  for (int64_t r = 0; r < rows; ++r) as_floats<V>(x, at + r * step, width, memory + r * width);
  step = width;
  return memory;
}

template <class V>
void pack_head(const AttentionProblem& p, int64_t image, int64_t kv_head, const HeadMemory& m) {
  for (int64_t j = 0; j < p.k_tokens; j += HeadMemory::kPanel) {
    const int64_t count = p.k_tokens - j < HeadMemory::kPanel ? p.k_tokens - j : HeadMemory::kPanel, token = image * p.k_tokens + j;
    int64_t step = p.k_step;
    const float* k = float_rows<V>(p.k, token * step + kv_head * p.width, step, count, p.width, m.floats);
    pack_keys(k, step, count, p.width, m.keys + j * p.width);
    step = p.v_step;
    const float* v = float_rows<V>(p.v, token * step + kv_head * p.v_width, step, count, p.v_width, m.floats);
    pack_values(v, step, count, p.k_tokens, p.v_width, m.values + j * HeadMemory::kPanel);
  }
}

// c[R][P vectors] = sum over k of a[R][k] * b[k][P vectors]
template <class V, int R, int P>
QK_INLINE void product_tile(const float* a, int64_t lda, const float* b, int64_t depth, float* c, int64_t ldc) {
  typename V::F sum[R][P];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int i = 0; i < P; ++i) sum[r][i] = V::set1(0.0f);
  for (int64_t k = 0; k < depth; ++k, b += HeadMemory::kPanel) {
    typename V::F right[P];
#pragma GCC unroll 2
    for (int i = 0; i < P; ++i) right[i] = V::load_f32(b + i * V::width);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const auto left = V::set1(a[r * lda + k]);
#pragma GCC unroll 2
      for (int i = 0; i < P; ++i) sum[r][i] = V::fma(left, right[i], sum[r][i]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int i = 0; i < P; ++i) V::store_f32(c + r * ldc + i * V::width, sum[r][i]);
}

// Whole panels of columns, of which `columns` mean something.
template <class V>
void product(const float* a, int64_t lda, int64_t rows, const float* b, int64_t depth, int64_t columns, float* c, int64_t ldc) {
  constexpr int R = V::width == 16 ? 8 : 4, P = 2;  // as many sums as the registers hold
  for (int64_t j = 0; j < columns; j += P * V::width) {
    const float* panel = b + j / HeadMemory::kPanel * HeadMemory::kPanel * depth + j % HeadMemory::kPanel;
    int64_t r = 0;
    for (; r + R <= rows; r += R) product_tile<V, R, P>(a + r * lda, lda, panel, depth, c + r * ldc + j, ldc);
    for (; r + R / 2 <= rows; r += R / 2) product_tile<V, R / 2, P>(a + r * lda, lda, panel, depth, c + r * ldc + j, ldc);
    for (; r < rows; ++r) product_tile<V, 1, P>(a + r * lda, lda, panel, depth, c + r * ldc + j, ldc);
  }
}

// What a bias and causality make of a row's scores: score * scale + bias, -inf where key j lies behind token i.
template <class V>
QK_INLINE void mask_scores(float* s, int64_t count, const float* bias, float scale, int64_t last) {
  if (bias) {
    const auto factor = V::set1(scale);
    int64_t j = 0;
    for (; j + V::width <= count; j += V::width) V::store_f32(s + j, V::fma(V::load_f32(s + j), factor, V::load_f32(bias + j)));
    if (j < count) V::store_f32(s + j, V::fma(V::load_f32(s + j), factor, load_some<V>(bias + j, count - j)));
  }
  for (int64_t j = last + 1; j < count; ++j) s[j] = -__builtin_inff();
}

// R rows of sums, times `inverse`, to y.
template <class V, int R>
QK_INLINE void divide_rows(const Finisher<V>& finish, const AttentionProblem& p, const HeadMemory& m, int64_t first, const float* inverse, void* y) {
  store_rows<V, R>(finish, p.v_width, y, p.heads * p.v_width, [&](int r, int64_t e, int64_t) QK_LAMBDA {
    return V::mul(V::load_f32(m.sums + (first + r) * m.sum_step + e), V::set1(inverse[r]));
  });
}

// Scores [rows, keys] in m.scores to weights; inverse[r] = 1 / the sum of a row's.
template <class V>
QK_INLINE void weigh(const AttentionProblem& p, int64_t image, int64_t head, int64_t begin, int64_t rows, const HeadMemory& m, float* inverse) {
  const float scale = p.exponent * 0.693147181f, exponent = p.bias ? kLog2E : p.exponent;
  for (int64_t r = 0; r < rows; ++r) {
    const float* bias = p.bias_of(image, head, begin + r);
    if (bias || p.causal) mask_scores<V>(m.scores + r * m.score_step, p.k_tokens, bias, scale, p.causal ? begin + r : p.k_tokens);
  }
  for (int64_t r = 0; r < rows; ++r) inverse[r] = largest_score<V>(m.scores + r * m.score_step, p.k_tokens);
  for (int64_t r = 0; r < rows; ++r) inverse[r] = inverse_of(exponentials<V>(m.scores + r * m.score_step, p.k_tokens, inverse[r], exponent));
}

// Rows [begin, begin + rows) of one head whose keys and values are packed; rows <= HeadMemory::kRows.
template <class V>
void attend(const AttentionProblem& p, int64_t image, int64_t head, int64_t begin, int64_t rows, const HeadMemory& m) {
  const int64_t features = p.heads * p.v_width, item = size_of(p.epilogue.out_type), first = image * p.q_tokens + begin;
  int64_t step = p.q_step;
  const float* q = float_rows<V>(p.q, first * step + head * p.width, step, rows, p.width, m.floats);
  char* y = static_cast<char*>(p.y) + (first * features + head * p.v_width) * item;
  float inverse[HeadMemory::kRows];
  product<V>(q, step, rows, m.keys, p.width, p.k_tokens, m.scores, m.score_step);
  weigh<V>(p, image, head, begin, rows, m, inverse);
  product<V>(m.scores, m.score_step, rows, m.values, p.k_tokens, p.v_width, m.sums, m.sum_step);
  const auto finish = Finisher<V>::make(p.epilogue);
  int64_t r = 0;
  for (; r + 2 <= rows; r += 2) divide_rows<V, 2>(finish, p, m, r, inverse + r, y + r * features * item);
  if (r < rows) divide_rows<V, 1>(finish, p, m, r, inverse + r, y + r * features * item);
}

}  // namespace
}  // namespace qk
