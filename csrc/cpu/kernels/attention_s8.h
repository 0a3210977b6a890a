// Attention of one head by products of int8, which the kernels of linear layers compute:
//
//   queries, and keys less their mean   a scale a token; a mean that all scores of a row share does not show in its softmax
//   values                              a scale a channel
//   weights 2^(score - largest)         in steps of 1 / 16256, as 128 * high + low: two rows of bytes from 0 to 127
//   y = (128 * high . v + low . v) / the sum of the steps
//
// Sums of products and of steps are whole numbers, whose order does not show.
#pragma once
#include "attention.h"

namespace qk {
namespace {

// Whole numbers from -127 to 127; a NaN is -127.
template <class V>
QK_INLINE typename V::I to_steps(typename V::F x, typename V::F inv_scale) {
  return V::round(V::min(V::max(V::mul(x, inv_scale), V::set1(-127.0f)), V::set1(127.0f)));
}

// Four vectors of such numbers as the four bytes of words, each + 128.
template <class V>
QK_INLINE typename V::I to_words(const typename V::I (&q)[4]) {
  const auto above = V::set1i(128);
  const auto low = V::addi(V::addi(q[0], above), V::template shli<8>(V::addi(q[1], above)));
  const auto high = V::addi(V::template shli<16>(V::addi(q[2], above)), V::template shli<24>(V::addi(q[3], above)));
  return V::addi(low, high);
}
constexpr int32_t kSigned = int32_t(0x80808080);  // what turns them into int8

// The scale of numbers whose largest is `most`, as dynamic_scale.
template <class V>
QK_INLINE typename V::F scale_of(typename V::F most) {
  return V::less(most, V::set1(kTinyRange), V::set1(1.0f), V::div(V::min(most, V::set1(kHugeRange)), V::set1(127.0f)));
}

// Rows of a head, as many as float_rows makes of int8 ones.
template <class V, class Body>
QK_INLINE void for_rows(const Operand& x, int64_t at, int64_t step, int64_t rows, int64_t width, const HeadBytes& m, Body body) {
  constexpr int64_t some = 4;
  for (int64_t r = 0; r < rows; r += some) {
    const int64_t count = rows - r < some ? rows - r : some;
    int64_t apart = step;
    const float* from = float_rows<V>(x, at + r * step, apart, count, width, m.floats);
    for (int64_t i = 0; i < count; ++i) body(r + i, from + i * apart);
  }
}

// value(i) of a row, and zeros up to a multiple of kParts.
template <class V, class Value>
QK_INLINE void to_parts(int64_t width, float* y, Value value) {
  for (int64_t i = 0; i < round_up(width, kParts); i += V::width)
    V::store_f32(y + i, i < width ? value(i, width - i) : V::set1(0.0f));
}

// Up to a panel of tokens less `mean`, their channels turned to lie below each other: their scales, and store(e, lane, words,
// sums) for four channels from e on of the tokens from `lane` on, with the sums of all channels up to there.
template <class V, class Store>
QK_INLINE void tokens_to_bytes(const float* x, int64_t step, int64_t count, int64_t width, const float* mean, float* turned, float* scale, Store store) {
  int64_t e = 0;
  if (count == kPanel)
    for (; e + 4 <= width; e += 4)
      for (int64_t i = 0; i < kPanel; i += 4) transpose_four<kPanel>(x + i * step + e, step, turned + e * kPanel + i);
  for (; e < round_up(width, 4); ++e)
    for (int64_t i = 0; i < kPanel; ++i) turned[e * kPanel + i] = i < count && e < width ? x[i * step + e] : 0.0f;
  for (int64_t lane = 0; lane < kPanel; lane += V::width) {
    float* const from = turned + lane;
    auto most = V::set1(0.0f);
    for (e = 0; e < width; ++e) {
      const auto v = V::sub(V::load_f32(from + e * kPanel), V::set1(mean ? mean[e] : 0.0f));
      V::store_f32(from + e * kPanel, v);
      most = V::max(V::abs(v), most);
    }
    const auto own = scale_of<V>(most), inv_scale = V::div(V::set1(1.0f), own);
    V::store_f32(scale + lane, own);
    auto sums = V::set1i(0);
    for (e = 0; e < width; e += 4) {
      typename V::I q[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) q[i] = to_steps<V>(V::load_f32(from + (e + i) * kPanel), inv_scale);
      sums = V::addi(sums, V::addi(V::addi(q[0], q[1]), V::addi(q[2], q[3])));
      store(e, lane, to_words<V>(q), sums);
    }
  }
}

template <class V>
QK_INLINE void pack_keys_s8(const AttentionProblem& p, int64_t at, const HeadBytes& m) {
  to_parts<V>(p.width, m.mean, [](int64_t, int64_t) QK_LAMBDA { return V::set1(0.0f); });
  for_rows<V>(p.k, at, p.k_step, p.k_tokens, p.width, m, [&](int64_t, const float* k) QK_LAMBDA {
    to_parts<V>(p.width, m.mean, [&](int64_t i, int64_t left) QK_LAMBDA { return V::add(V::load_f32(m.mean + i), load_some<V>(k + i, left)); });
  });
  const auto share = V::set1(1.0f / float(p.k_tokens));
  to_parts<V>(p.width, m.mean, [&](int64_t i, int64_t) QK_LAMBDA { return V::mul(V::load_f32(m.mean + i), share); });
  for (int64_t j = 0; j < p.k_tokens; j += kPanel) {
    const int64_t count = p.k_tokens - j < kPanel ? p.k_tokens - j : kPanel;
    int64_t step = p.k_step;
    const float* k = float_rows<V>(p.k, at + j * step, step, count, p.width, m.floats);
    int8_t* const panel = m.keys + j * m.q_step;
    tokens_to_bytes<V>(k, step, count, p.width, m.mean, m.turned, m.key_scale + j, [&](int64_t e, int64_t lane, auto words, auto sums) QK_LAMBDA {
      V::store_i32(reinterpret_cast<int32_t*>(panel + e * kPanel + lane * 4), V::xori(words, V::set1i(kSigned)));
      V::store_i32(m.key_sum + j + lane, sums);
    });
  }
}

template <class V>
QK_INLINE void pack_values_s8(const AttentionProblem& p, int64_t at, const HeadBytes& m) {
  const int64_t width = round_up(p.v_width, kPanel), panel_bytes = kPanel * m.weight_step;
  float *const most = m.value_scale, *const inv_scale = m.sums;  // which is not in use yet
  to_parts<V>(p.v_width, most, [](int64_t, int64_t) QK_LAMBDA { return V::set1(0.0f); });
  for_rows<V>(p.v, at, p.v_step, p.k_tokens, p.v_width, m, [&](int64_t, const float* v) QK_LAMBDA {
    to_parts<V>(p.v_width, most, [&](int64_t i, int64_t left) QK_LAMBDA { return V::max(V::abs(load_some<V>(v + i, left)), V::load_f32(most + i)); });
  });
  for (int64_t c = 0; c < width; c += V::width) {
    const auto own = scale_of<V>(V::load_f32(most + c));
    V::store_f32(m.value_scale + c, own);
    V::store_f32(inv_scale + c, V::div(V::set1(1.0f), own));
    V::store_i32(m.value_sum + c, V::set1i(0));
  }
  for (int64_t t = 0; t < p.k_tokens; t += 4) {
    const int64_t count = p.k_tokens - t < 4 ? p.k_tokens - t : 4;
    int64_t step = p.v_step;
    const float* v = float_rows<V>(p.v, at + t * step, step, count, p.v_width, m.floats);
    for (int64_t c = 0; c < width; c += V::width) {
      const auto steps_of = [&](int64_t r) QK_LAMBDA {
        return r < count && c < p.v_width ? to_steps<V>(load_some<V>(v + r * step + c, p.v_width - c), V::load_f32(inv_scale + c)) : V::set1i(0);
      };
      const typename V::I q[4] = {steps_of(0), steps_of(1), steps_of(2), steps_of(3)};
      V::store_i32(m.value_sum + c, V::addi(V::load_i32(m.value_sum + c), V::addi(V::addi(q[0], q[1]), V::addi(q[2], q[3]))));
      int8_t* const to = m.values + c / kPanel * panel_bytes + t * kPanel + c % kPanel * 4;
      V::store_i32(reinterpret_cast<int32_t*>(to), V::xori(to_words<V>(q), V::set1i(kSigned)));
    }
  }
}

template <class V>
void pack_head_s8(const AttentionProblem& p, int64_t image, int64_t kv_head, const HeadBytes& m) {
  const int64_t token = image * p.k_tokens;
  __builtin_memset(m.keys, 0, size_t(m.key_bytes()));
  __builtin_memset(m.values, 0, size_t(m.value_bytes()));
  for (int64_t j = p.k_tokens; j < m.score_step; ++j) m.key_scale[j] = 0.0f, m.key_sum[j] = 0;
  for (int64_t c = round_up(p.v_width, kPanel); c < m.sum_step; ++c) m.value_scale[c] = 0.0f, m.value_sum[c] = 0;
  pack_keys_s8<V>(p, token * p.k_step + kv_head * p.width, m);
  pack_values_s8<V>(p, token * p.v_step + kv_head * p.v_width, m);
}

// `mask`: what the kernel of the products wants its rows XORed with.
template <class V>
void queries_s8(const AttentionProblem& p, int64_t image, int64_t head, int64_t begin, int64_t rows, int8_t mask, const HeadBytes& m) {
  const auto factor = V::set1(p.bias ? p.exponent * 0.693147181f : p.exponent), flip = V::set1i(mask ? 0 : kSigned);
  for (int64_t r = 0; r < rows; r += kPanel) {
    const int64_t count = rows - r < kPanel ? rows - r : kPanel;
    int64_t step = p.q_step;
    const float* q = float_rows<V>(p.q, (image * p.q_tokens + begin + r) * step + head * p.width, step, count, p.width, m.floats);
    tokens_to_bytes<V>(q, step, count, p.width, nullptr, m.turned, m.row_scale + r, [&](int64_t e, int64_t lane, auto words, auto) QK_LAMBDA {
      alignas(64) int32_t some[V::width];
      V::store_i32(some, V::xori(words, flip));
      for (int64_t i = 0; i < V::width; ++i) __builtin_memcpy(m.q + (r + lane + i) * m.q_step + e, some + i, 4);
    });
    for (int64_t i = 0; i < kPanel; i += V::width) V::store_f32(m.row_scale + r + i, V::mul(V::load_f32(m.row_scale + r + i), factor));
  }
}

// 127 * 128 times 2^f for f in [-0.5, 0.5], fitted to the least error, 0.04.
constexpr float kWeight[] = {157.450882f, 909.06842f, 3904.99438f, 11267.376f, 16256.0029f};

// The steps of a score that lies so much below the largest; a NaN has none.
template <class V>
QK_INLINE typename V::I weight_steps(typename V::F t) {
  t = V::max(t, V::set1(-16.0f));
  const auto n = V::round(t);
  const auto bits = V::as_bits(polynomial<V>(kWeight, V::sub(t, V::to_float(n))));
  return V::round(V::from_bits(V::addi(bits, V::template shli<23>(n))));
}

template <class V, bool Bias>
QK_INLINE void weigh_row(const float* s, float largest, int64_t tokens, int8_t mask, int8_t* high, int8_t* low, int32_t* totals) {
  constexpr int64_t W = V::width;
  const auto top = V::set1(largest), factor = V::set1(kLog2E);
  auto total = V::set1i(0);
  const auto weigh = [&](int64_t j, typename V::I& above, typename V::I& below) QK_LAMBDA {
    const auto away = V::sub(V::load_f32(s + j), top);
    const auto steps = weight_steps<V>(Bias ? V::mul(away, factor) : away);
    total = V::addi(total, steps);
    above = V::template sari<7>(steps);
    below = V::subi(steps, V::template shli<7>(above));
  };
  int64_t j = 0;
  for (; j + 4 * W <= tokens; j += 4 * W) {
    typename V::I above[4], below[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) weigh(j + v * W, above[v], below[v]);
    int8_t *const to_high[2] = {high + j, high + j + 2 * W}, *const to_low[2] = {low + j, low + j + 2 * W};
    V::store_s8_rows(to_high, above, 0, mask);
    V::store_s8_rows(to_low, below, 0, mask);
  }
  for (; j < tokens; j += W) {
    typename V::I above, below;
    weigh(j, above, below);
    V::store_s8(high + j, V::xori(above, V::set1i(mask)));
    V::store_s8(low + j, V::xori(below, V::set1i(mask)));
  }
  V::store_i32(totals, total);
}

// Scores [rows][tokens] to the bytes of their weights, high ones above low ones, with what their sums are multiplied by.
template <class V>
void weigh_s8(const AttentionProblem& p, int64_t begin, int64_t rows, int8_t mask, const HeadBytes& m) {
  if (p.causal)
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t j = begin + r + 1; j < p.k_tokens; ++j) m.scores[r * m.score_step + j] = -__builtin_inff();
  for (int64_t r = 0; r < rows; ++r) m.row_scale[r] = largest_score<V>(m.scores + r * m.score_step, p.k_tokens);
  int32_t* const totals = reinterpret_cast<int32_t*>(m.sums);  // [rows][V::width], not in use yet
  for (int64_t r = 0; r < rows; ++r) {
    const float* s = m.scores + r * m.score_step;
    int8_t *high = m.weights + r * m.weight_step, *low = high + rows * m.weight_step;
    if (p.bias) weigh_row<V, true>(s, m.row_scale[r], p.k_tokens, mask, high, low, totals + r * V::width);
    else weigh_row<V, false>(s, m.row_scale[r], p.k_tokens, mask, high, low, totals + r * V::width);
  }
  for (int64_t r = 0; r < rows; ++r) {
    int32_t sum = 0;
    for (int64_t i = 0; i < V::width; ++i) sum += totals[r * V::width + i];
    m.row_scale[rows + r] = inverse_of(float(sum));
    m.row_scale[r] = m.row_scale[rows + r] * 128.0f;
  }
}

// What the products gave for high and low bytes, added, to y.
template <class V>
void store_s8(const AttentionProblem& p, int64_t image, int64_t head, int64_t begin, int64_t rows, const HeadBytes& m) {
  const int64_t features = p.heads * p.v_width;
  char* y = static_cast<char*>(p.y) + ((image * p.q_tokens + begin) * features + head * p.v_width) * size_of(p.epilogue.out_type);
  const auto finish = Finisher<V>::make(p.epilogue);
  for (int64_t r = 0; r < rows; ++r, y += features * size_of(p.epilogue.out_type)) {
    const float *high = m.sums + r * m.sum_step, *low = high + rows * m.sum_step;
    store_run<V>(finish, p.v_width, y, [=](int64_t i, int64_t left) QK_LAMBDA { return V::add(load_some<V>(high + i, left), load_some<V>(low + i, left)); });
  }
}

}  // namespace
}  // namespace qk
