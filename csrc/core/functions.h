// Functions of one number in float32, a polynomial each: what docs/numerics.md calls by these names. Every operation is
// IEEE's and in a fixed order, so that all vector widths give the same bits. A NaN stays one or counts as a lower bound;
// what stores results makes it the lower bound of its clamp.
#pragma once
#include <cstddef>

#include "inline.h"
#include "problem.h"

namespace qk {
namespace {

template <class V, size_t N>
QK_INLINE typename V::F polynomial(const float (&c)[N], typename V::F x) {
  auto y = V::set1(c[0]);
#pragma GCC unroll 16
  for (size_t i = 1; i < N; ++i) y = V::fma(y, x, V::set1(c[i]));
  return y;
}

// 2^f for f in [-0.5, 0.5], of Cephes' exp2f; without its last term, (2^f - 1) / f.
constexpr float kExp2[] = {1.535336188319500e-4f, 1.339887440266574e-3f, 9.618437357674640e-3f, 5.550332471162809e-2f,
                           2.402264791363012e-1f, 6.931472028550421e-1f, 1.0f};
constexpr float kExp2Less[] = {kExp2[0], kExp2[1], kExp2[2], kExp2[3], kExp2[4], kExp2[5]};

// 2^t for t <= 0; 0 below -126.5 and for a NaN.
template <class V>
QK_INLINE typename V::F exp2_of(typename V::F t) {
  t = V::max(t, V::set1(-127.0f));
  const auto n = V::round(t);
  return V::mul(polynomial<V>(kExp2, V::sub(t, V::to_float(n))), V::power_of_two(n));
}

// x * log2(e) as n + f with n whole; x in [-87, 89].
template <class V>
QK_INLINE typename V::F split_exponent(typename V::F x, typename V::I& n) {
  n = V::round(V::mul(x, V::set1(1.44269504f)));
  return V::fma(x, V::set1(1.92596299e-8f), V::fma(x, V::set1(1.44269504f), V::sub(V::set1(0.0f), V::to_float(n))));
}

// e^x; 0 below -87 and for a NaN.
template <class V>
QK_INLINE typename V::F exp_of(typename V::F x) {
  typename V::I n;
  const auto f = split_exponent<V>(V::min(V::max(x, V::set1(-87.0f)), V::set1(89.0f)), n);
  const auto half = V::power_of_two(V::subi(n, V::set1i(1)));
  return V::mul(V::mul(polynomial<V>(kExp2, f), half), V::set1(2.0f));
}

// e^x - 1, exact near 0 as well; of no more than 88.
template <class V>
QK_INLINE typename V::F expm1_of(typename V::F x) {
  typename V::I n;
  const auto f = split_exponent<V>(V::min(V::max(x, V::set1(-87.0f)), V::set1(88.0f)), n);
  const auto power = V::power_of_two(n);
  return V::fma(V::mul(polynomial<V>(kExp2Less, f), f), power, V::sub(power, V::set1(1.0f)));
}

template <class V>
QK_INLINE typename V::F tanh_of(typename V::F x) {
  const auto e = expm1_of<V>(V::min(V::max(V::add(x, x), V::set1(-20.0f)), V::set1(20.0f)));
  return V::div(e, V::add(e, V::set1(2.0f)));
}

// The polynomial of Cephes' logf; -inf for what is not above 0 and for a NaN.
constexpr float kLog[] = {7.0376836292e-2f, -1.1514610310e-1f, 1.1676998740e-1f, -1.2420140846e-1f, 1.4249322787e-1f,
                          -1.6668057665e-1f, 2.0000714765e-1f, -2.4999993993e-1f, 3.3333331174e-1f};

template <class V>
QK_INLINE typename V::F log_of(typename V::F x) {
  const auto least = V::set1(1.17549435e-38f), zero = V::set1(0.0f);
  const auto normal = V::less(x, least, V::mul(x, V::set1(16777216.0f)), x);
  const auto bits = V::as_bits(normal), n = V::shift_23(V::subi(bits, V::set1i(0x3f3504f3)));  // sqrt(1/2): r is in [-0.3, 0.42]
  const auto r = V::sub(V::from_bits(V::subi(bits, V::muli(n, V::set1i(1 << 23)))), V::set1(1.0f));
  const auto e = V::add(V::to_float(n), V::less(x, least, V::set1(-24.0f), zero));
  const auto square = V::mul(r, r);
  auto y = V::mul(polynomial<V>(kLog, r), V::mul(r, square));
  y = V::fma(e, V::set1(-2.12194440e-4f), y);
  y = V::fma(square, V::set1(-0.5f), y);
  y = V::fma(e, V::set1(0.693359375f), V::add(r, y));
  y = V::less(x, V::set1(__builtin_inff()), y, x);
  return V::less(zero, x, y, V::set1(-__builtin_inff()));
}

// log(1 + e^x)
template <class V>
QK_INLINE typename V::F softplus_of(typename V::F x) {
  const auto one = V::set1(1.0f);
  const auto e = exp_of<V>(V::sub(V::set1(0.0f), V::abs(x))), u = V::add(one, e);
  const auto lost = V::div(V::sub(e, V::sub(u, one)), u);
  return V::add(V::max(x, V::set1(0.0f)), V::add(log_of<V>(u), lost));
}

// gelu(x) = max(x, 0) - g(|x|), g(a) = a * (1 - erf(a / sqrt(2))) / 2: of a * 1.375, the nearest whole number picks a polynomial
// in the rest, fitted to the least error. g is 0 at 0, and below 4e-7 from 5.45 on.
constexpr float kGelu[6][8] = {
    {-0.00207720208f, -0.00455497298f, 0.000200474649f, 0.00156643114f,
     0.000119845448f, -0.000153874455f, -3.8375947e-05f, -3.56827263e-06f},
    {0.0197127834f, 0.00216487027f, -0.00993374642f, -0.00294856215f,
     0.00105039217f, 0.0005462892f, 8.41999281e-05f, 6.00871908e-06f},
    {-0.000272220757f, 0.0495410375f, 0.0243498478f, -0.00392155116f,
     -0.004828515f, -0.00115396117f, -0.000122889105f, -6.68009625e-06f},
    {-0.210981578f, -0.119148612f, 0.00421105325f, 0.026956588f,
     0.00991407875f, 0.00159167219f, 0.000131390771f, 5.88818375e-06f},
    {0.363635331f, 0.00786471553f, -0.0935103372f, -0.0479878485f,
     -0.0109473672f, -0.00131818361f, -8.81856104e-05f, -3.35163986e-06f},
    {0.0f, 0.169839725f, 0.106033206f, 0.0317703933f,
     0.0052723838f, 0.00050276093f, 2.79154829e-05f, 9.07858123e-07f}};

template <class V>
QK_INLINE typename V::F gelu_of(typename V::F x) {
  const auto steps = V::set1(1.375f), whole = V::set1(12582912.0f);  // 1.5 * 2^23: sums are whole numbers, in their lowest bits
  const auto a = V::min(V::abs(x), V::set1(5.453125f)), sum = V::fma(a, steps, whole);
  const auto rest = V::fma(a, steps, V::sub(whole, sum));
  const auto at = V::as_bits(sum);
  auto g = V::pick(kGelu[0], at);
#pragma GCC unroll 5
  for (int i = 1; i < 6; ++i) g = V::fma(g, rest, V::pick(kGelu[i], at));
  return V::sub(V::max(V::set1(0.0f), x), g);
}

// 1 / x for x in [1, 2^125]: a guess of its bits within an eighth, and twice y + y * (e + e^2) of the error e = 1 - x * y. These
// seven instructions are less than half of the cycles of a division of sixteen floats.
template <class V>
QK_INLINE typename V::F reciprocal_of(typename V::F x) {
  auto y = V::from_bits(V::subi(V::set1i(0x7ef311c7), V::as_bits(x)));
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const auto e = V::fnma(x, y, V::set1(1.0f));
    y = V::fma(y, V::fma(e, e, e), y);
  }
  return y;
}

// 2^(i / 8), and 2^(r / 8) for r in [-0.5, 0.5].
constexpr float kEighths[8] = {1.0f, 1.09050775f, 1.18920708f, 1.29683959f, 1.41421354f, 1.54221082f, 1.68179286f, 1.8340081f};
constexpr float kWithinEighth[] = {0.000108396292f, 0.00375412614f, 0.0866433978f, 1.0f};
constexpr float kEighthsOfE = 11.5415603f;  // 8 * log2(e)

// x / (1 + 2^(t / 8)): the nearest whole number to t is an exponent and the place of a table.
template <class V>
QK_INLINE typename V::F gated(typename V::F x, typename V::F t) {
  const auto whole = V::set1(12582912.0f);  // 1.5 * 2^23, as in gelu_of
  t = V::min(V::max(t, V::set1(-1008.0f)), V::set1(992.0f));
  const auto sum = V::add(t, whole);
  const auto at = V::as_bits(sum);
  const auto part = V::mul(V::pick(kEighths, at), polynomial<V>(kWithinEighth, V::sub(t, V::sub(sum, whole))));
  const auto power = V::from_bits(V::addi(V::as_bits(part), V::template shli<23>(V::template sari<3>(at))));
  return V::mul(x, reciprocal_of<V>(V::add(power, V::set1(1.0f))));
}

template <class V, Function f>
QK_INLINE typename V::F value_of(typename V::F x, typename V::F parameter) {
  const auto zero = V::set1(0.0f), one = V::set1(1.0f);
  const auto clipped = [&]() QK_LAMBDA { return V::min(V::max(V::add(x, V::set1(3.0f)), zero), V::set1(6.0f)); };
  if constexpr (f == Function::silu) return gated<V>(x, V::mul(x, V::mul(parameter, V::set1(-kEighthsOfE))));
  else if constexpr (f == Function::sigmoid) return gated<V>(one, V::mul(x, V::set1(-kEighthsOfE)));
  else if constexpr (f == Function::gelu) return gelu_of<V>(x);
  else if constexpr (f == Function::gelu_tanh) {
    const auto slope = V::fma(V::mul(x, x), V::set1(-0.823545933f), V::set1(-18.4176655f));
    return gated<V>(x, V::mul(x, slope));
  } else if constexpr (f == Function::hardsigmoid) return V::mul(clipped(), V::set1(0.166666667f));
  else if constexpr (f == Function::hardswish) return V::mul(x, V::mul(clipped(), V::set1(0.166666667f)));
  else if constexpr (f == Function::tanh) return tanh_of<V>(x);
  else if constexpr (f == Function::elu) return V::less(zero, x, x, V::mul(parameter, expm1_of<V>(x)));
  else if constexpr (f == Function::leaky_relu) return V::less(zero, x, x, V::mul(parameter, x));
  else if constexpr (f == Function::exp) return exp_of<V>(x);
  else if constexpr (f == Function::log) return log_of<V>(x);
  else if constexpr (f == Function::sqrt) return V::sqrt(x);
  else if constexpr (f == Function::rsqrt) return V::div(one, V::sqrt(x));
  else if constexpr (f == Function::reciprocal) return V::div(one, x);
  else if constexpr (f == Function::abs) return V::abs(x);
  else if constexpr (f == Function::neg) return V::sub(V::set1(-0.0f), x);
  else if constexpr (f == Function::square) return V::mul(x, x);
  else if constexpr (f == Function::softplus) return softplus_of<V>(x);
  else if constexpr (f == Function::mish) {
    const auto e = exp_of<V>(V::min(x, V::set1(20.0f))), n = V::mul(e, V::add(e, V::set1(2.0f)));
    return V::mul(x, V::div(n, V::add(n, V::set1(2.0f))));
  } else return x;
}

// Calls body(tag) with a type whose `function` is f.
template <Function f>
struct FunctionTag {
  static constexpr Function function = f;
};
template <class Body>
QK_INLINE void with_function(Function f, Body body) {
#define QK_CASE(name) case Function::name: return body(FunctionTag<Function::name>());
  switch (f) { QK_FUNCTIONS(QK_CASE) }
#undef QK_CASE
}

// Whether a vector type has what functions are made of: those of CPUs.
template <class V>
constexpr bool kHasFunctions = requires(typename V::F v) { V::sqrt(v); };

// A call, so that the one function that is needed hardly touches the loops around it.
template <class V>
__attribute__((noinline)) typename V::F activated(Function f, float parameter, typename V::F x) {
  with_function(f, [&](auto tag) QK_LAMBDA { x = value_of<V, decltype(tag)::function>(x, V::set1(parameter)); });
  return x;
}

// The same for x[0 .. count), in place; what lies behind up to a multiple of four vectors is computed too.
template <class V>
__attribute__((noinline)) void activate(Function f, float parameter, float* x, int64_t count) {
  const auto p = V::set1(parameter);
  with_function(f, [=](auto tag) QK_LAMBDA {
    for (int64_t i = 0; i < count; i += 4 * V::width)
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        float* at = x + i + v * V::width;
        V::store_f32(at, value_of<V, decltype(tag)::function>(V::load_f32(at), p));
      }
  });
}

}  // namespace
}  // namespace qk
