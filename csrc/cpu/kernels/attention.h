// Attention of one head: products of float32, a softmax a row between them.
//
//   scores[i][j] = q[i] . k[j]     keys packed as [tokens / 32][width][32]: transposed, lanes are tokens
//   softmax of each row            left undivided; 1 / its sum waits for the end
//   y[i] = scores[i] . v           values packed as [width / 32][tokens][32]: lanes are features
//
// Every sum of a product is one chain of fma in increasing k, so lanes and tiles do not show in the bits.
#pragma once
#include "functions.h"
#include "tokens.h"

namespace qk {
namespace {

typedef float Four __attribute__((vector_size(16)));
typedef int32_t Four_of __attribute__((vector_size(16)));  // which of two Fours' elements

// x [4][4], rows `step` apart, transposed to rows of a panel.
QK_INLINE void transpose_four(const float* x, int64_t step, float* y) {
  Four row[4];
  for (int i = 0; i < 4; ++i) __builtin_memcpy(&row[i], x + i * step, 16);
  const Four low01 = __builtin_shuffle(row[0], row[1], Four_of{0, 4, 1, 5}), high01 = __builtin_shuffle(row[0], row[1], Four_of{2, 6, 3, 7});
  const Four low23 = __builtin_shuffle(row[2], row[3], Four_of{0, 4, 1, 5}), high23 = __builtin_shuffle(row[2], row[3], Four_of{2, 6, 3, 7});
  const Four column[4] = {__builtin_shuffle(low01, low23, Four_of{0, 1, 4, 5}), __builtin_shuffle(low01, low23, Four_of{2, 3, 6, 7}),
                          __builtin_shuffle(high01, high23, Four_of{0, 1, 4, 5}), __builtin_shuffle(high01, high23, Four_of{2, 3, 6, 7})};
  for (int i = 0; i < 4; ++i) __builtin_memcpy(y + i * HeadMemory::kPanel, &column[i], 16);
}

QK_INLINE void pack_keys(const float* x, int64_t step, int64_t tokens, int64_t width, float* y) {
  for (int64_t j = 0; j < tokens; j += HeadMemory::kPanel, x += HeadMemory::kPanel * step, y += HeadMemory::kPanel * width) {
    const int64_t count = tokens - j < HeadMemory::kPanel ? tokens - j : HeadMemory::kPanel;
    int64_t e = 0;
    if (count == HeadMemory::kPanel)
      for (; e + 4 <= width; e += 4)
        for (int64_t i = 0; i < HeadMemory::kPanel; i += 4) transpose_four(x + i * step + e, step, y + e * HeadMemory::kPanel + i);
    for (; e < width; ++e)
      for (int64_t i = 0; i < HeadMemory::kPanel; ++i) y[e * HeadMemory::kPanel + i] = i < count ? x[i * step + e] : 0.0f;
  }
}

QK_INLINE void pack_values(const float* x, int64_t step, int64_t tokens, int64_t width, float* y) {
  for (int64_t e = 0; e < width; e += HeadMemory::kPanel) {
    const int64_t count = width - e < HeadMemory::kPanel ? width - e : HeadMemory::kPanel;
    for (int64_t j = 0; j < tokens; ++j, y += HeadMemory::kPanel) {
      if (count < HeadMemory::kPanel)
        for (int64_t i = 0; i < HeadMemory::kPanel; ++i) y[i] = i < count ? x[j * step + e + i] : 0.0f;
      else
        __builtin_memcpy(y, x + j * step + e, sizeof(float) * HeadMemory::kPanel);
    }
  }
}

template <class V>
void pack_head(const AttentionProblem& p, int64_t image, int64_t head, const HeadMemory& m) {
  const int64_t features = p.heads * p.width, step = 3 * features;
  const float* q = p.x + image * p.tokens * step + head * p.width;
  pack_keys(q + features, step, p.tokens, p.width, m.keys);
  pack_values(q + 2 * features, step, p.tokens, p.width, m.values);
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

// The largest of a row's scores. What lies behind them up to a multiple of 16 becomes -inf.
template <class V>
QK_INLINE float largest_score(float* s, int64_t count) {
  const int64_t end = round_up(count, kParts);
  for (int64_t j = count; j < end; ++j) s[j] = -__builtin_inff();
  typename V::F most[kVectors<V>];
#pragma GCC unroll 16
  for (int v = 0; v < kVectors<V>; ++v) most[v] = V::set1(-__builtin_inff());
  for (int64_t j = 0; j < end; j += kParts)
#pragma GCC unroll 16
    for (int v = 0; v < kVectors<V>; ++v) most[v] = V::max(V::load_f32(s + j + v * V::width), most[v]);
  return largest_of<V>(most);
}

// Scores to 2^((score - largest) * exponent), in place; returns 1 / their sum.
template <class V>
QK_INLINE float exponentials(float* s, int64_t count, float largest, float exponent) {
  const auto top = V::set1(largest), factor = V::set1(exponent);
  typename V::F sum[kVectors<V>];
#pragma GCC unroll 16
  for (int v = 0; v < kVectors<V>; ++v) sum[v] = V::set1(0.0f);
  for (int64_t j = 0; j < count; j += kParts)
#pragma GCC unroll 16
    for (int v = 0; v < kVectors<V>; ++v) {
      float* at = s + j + v * V::width;
      const auto e = exp2_of<V>(V::mul(V::sub(V::load_f32(at), top), factor));
      V::store_f32(at, e);
      sum[v] = V::add(sum[v], e);
    }
  return 1.0f / sum_of<V>(sum);
}

// R rows of sums, times `inverse`, to y.
template <class V, int R>
QK_INLINE void divide_rows(const Finisher<V>& finish, const AttentionProblem& p, const HeadMemory& m, int64_t first, const float* inverse, void* y) {
  store_rows<V, R>(finish, p.width, y, p.heads * p.width, [&](int r, int64_t e, int64_t) QK_LAMBDA {
    return V::mul(V::load_f32(m.sums + (first + r) * m.sum_step + e), V::set1(inverse[r]));
  });
}

// Rows [begin, begin + rows) of one head whose keys and values are packed; rows <= HeadMemory::kRows.
template <class V>
void attend(const AttentionProblem& p, int64_t image, int64_t head, int64_t begin, int64_t rows, const HeadMemory& m) {
  const int64_t features = p.heads * p.width, item = size_of(p.epilogue.out_type), first = image * p.tokens + begin;
  const float* q = p.x + first * 3 * features + head * p.width;
  char* y = static_cast<char*>(p.y) + (first * features + head * p.width) * item;
  float row[HeadMemory::kRows];  // its largest score, then 1 / the sum of its weights
  product<V>(q, 3 * features, rows, m.keys, p.width, p.tokens, m.scores, m.score_step);
  for (int64_t r = 0; r < rows; ++r) row[r] = largest_score<V>(m.scores + r * m.score_step, p.tokens);
  for (int64_t r = 0; r < rows; ++r) row[r] = exponentials<V>(m.scores + r * m.score_step, p.tokens, row[r], p.exponent);
  product<V>(m.scores, m.score_step, rows, m.values, p.tokens, p.width, m.sums, m.sum_step);
  const auto finish = Finisher<V>::make(p.epilogue);
  int64_t r = 0;
  for (; r + 2 <= rows; r += 2) divide_rows<V, 2>(finish, p, m, r, row + r, y + r * features * item);
  if (r < rows) divide_rows<V, 1>(finish, p, m, r, row + r, y + r * features * item);
}

}  // namespace
}  // namespace qk
