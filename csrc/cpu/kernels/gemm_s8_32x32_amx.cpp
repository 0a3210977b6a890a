// C[32x32] += a[32][k] * b[k][32] with tdpbssd on 2 x 2 tiles of 16 x 16, or C[16x64] on 1 x 4 where rows are few.
//
//              tmm6: b panel 0   tmm7: b panel 1     one k step is 64 deep: a tile is 16 rows x 64 bytes as
//   tmm4: a 0..15    tmm0              tmm1          they lie, b tile 16 groups of four k x 16 channels
//   tmm5: a 16..31   tmm2              tmm3
// Rows outside, panels inside: C is written along its rows while the row panel of a stays in L1. The sums of a block are
// stored a few rows at a time between the tile products of the next one, which leave the vector units idle.
#include <new>
#include <type_traits>

#include "gemm_block.h"

#include "../tile.h"

#if defined(QK_AMX_EMULATED)
#include "../vec/scalar.h"
#else
#include "../vec/avx512.h"
#endif

namespace qk {
namespace {

#if defined(QK_AMX_EMULATED)
using Vec = Scalar;
#else
using Vec = Avx512;
#endif

// Sums that are yet to be stored: pairs of panels, each [rows][32].
struct Sums {
  alignas(64) int32_t acc[32 * 32];
  int64_t pairs = 0, rows = 0, first, j;
  int64_t gap;                   // of C, elements before them besides rows
  bool whole;                    // all columns exist, and no line of C ends between the rows

  const int32_t* pair(int64_t i) const { return acc + i * 16 * 32; }

  void hold(const GemmBlock& g, int64_t column, int64_t panels, int64_t row, int64_t count) {
    pairs = (panels + 1) / 2, rows = count, first = row, j = column;
    const int64_t line = g.c_gap ? (g.c_column + row) / g.c_line : 0;
    gap = line * g.c_gap;
    whole = j + pairs * 32 <= g.cols && (!g.c_gap || g.c_column + row + count <= (line + 1) * g.c_line);
  }
};

// Stores them a few rows at a time, of any types.
class AnyTypes {
 public:
  static constexpr bool known = false;

  QK_METHOD AnyTypes(const GemmBlock& g, const Finisher<Vec>&, const Sums& sums, int64_t steps)
      : sums_(sums), share_(round_up(ceil_div(sums.rows, steps), 2)) {
    for (int64_t i = 0; i < sums.pairs; ++i) new (&columns_[i]) Columns<Vec, 2>(g, sums.j + i * 2 * kPanel);
  }
  QK_METHOD ~AnyTypes() {}       // of `columns_`, which hold nothing to end

  QK_METHOD void store() { store_rows(share_); }
  QK_METHOD void store_rest() { store_rows(sums_.rows); }

 private:
  const Sums& sums_;
  const int64_t share_;
  int64_t done_ = 0;
  union {
    Columns<Vec, 2> columns_[2];
  };

  QK_METHOD void store_rows(int64_t most) {
    const int64_t left = sums_.rows - done_, count = most < left ? most : left;
    if (!count) return;
    for (int64_t i = 0; i < sums_.pairs; ++i) columns_[i].store(sums_.pair(i) + done_ * 32, sums_.first + done_, count);
    done_ += count;
  }
};

// The same for whole sums of known types, with what their columns need in registers.
template <bool OneScale, DType Out, Residual R>
struct Types {
  template <int Pairs>
  class Known {
   public:
    QK_METHOD Known(const GemmBlock& g, const Finisher<Vec>& finish, const Sums& sums, int64_t steps)
        : sums_(sums), share_(ceil_div(sums.rows, steps * Rows::at_once)) {
      for (int64_t i = 0; i < count; ++i) {
        const int64_t column = sums.j + i * N * Vec::width;
        Dequantizer<Vec> columns[N];
#pragma GCC unroll 2
        for (int v = 0; v < N; ++v) {
          columns[v] = Dequantizer<Vec>::make(*g.epilogue, g.n0 + column + v * Vec::width);
          if (OneScale) columns[v].use(g.row_scale[0], g.row_offset[0]);
        }
        new (&rows_[i]) Rows(g, finish, columns, column, sums.first, sums.gap);
      }
    }
    QK_METHOD ~Known() {}        // of `rows_`, which hold nothing to end

    QK_METHOD void store() {
      for (int64_t i = 0; i < share_ && done_ < sums_.rows; ++i) store_some();
    }
    QK_METHOD void store_rest() {
      while (done_ < sums_.rows) store_some();
    }

   private:
    static constexpr int N = 2;
    static constexpr int64_t in_pair = 32 / (N * Vec::width), count = Pairs * in_pair;
    using Rows = KnownRows<Vec, N, OneScale, Out, R>;
    const Sums& sums_;
    const int64_t share_;        // of at_once rows, after each step of K
    int64_t done_ = 0;
    union {
      Rows rows_[count];
    };

    QK_METHOD void store_some() {
#pragma GCC unroll 2
      for (int64_t i = 0; i < count; ++i)
        rows_[i].store(sums_.pair(i / in_pair) + done_ * 32 + i % in_pair * N * Vec::width, 32, sums_.rows - done_);
      done_ += Rows::at_once;
    }
  };
};

// A x P tiles of C into acc; a share of what is left of the block before is stored after each step of K.
template <int A, int P, class Later>
__attribute__((noinline)) void multiply(Tiles& t, const int8_t* a, const int8_t* b, const GemmBlock& g, int32_t* acc, const Finisher<Vec>& finish,
                                        const Sums& before) {
  const int64_t lda = g.lda, panel_bytes = g.panel_bytes, k64 = ceil_div(g.k4, 16);
  Later later(g, finish, before, g.piece_rows * g.piece_columns * k64);
  const auto for_tiles = [](auto body) QK_LAMBDA {
    [&]<int... I>(std::integer_sequence<int, I...>) QK_LAMBDA { (body.template operator()<I>(), ...); }
    (std::make_integer_sequence<int, A * P>());
  };
  for_tiles([&]<int I>() QK_LAMBDA { t.zero<I>(); });
  for_pieces(a, b, g, [&](const int8_t* x, const int8_t* w) QK_LAMBDA {
    for (int64_t k = 0; k < k64; ++k) {
      t.load<4>(x + k * 64, lda);
      if (A > 1) t.load<5>(x + 16 * lda + k * 64, lda);
      for_tiles([&]<int I>() QK_LAMBDA {  // column by column, so that a tile of b is loaded once
        constexpr int row = I % A, column = I / A;
        if (row == 0) t.load_once<6 + column % 2>(w + column * panel_bytes + k * 1024, 64);
        t.dot<row * P + column, 4 + row, 6 + column % 2>();
      });
      later.store();
    }
  });
  later.store_rest();
  for_tiles([&]<int I>() QK_LAMBDA {
    constexpr int row = I / P, column = I % P;
    t.store<I>(acc + column / 2 * 16 * 32 + row * 16 * 32 + column % 2 * 16, 128);
  });
}

// The blocks of a kernel call, one after the other. T: Types, or void where they are others.
template <class T>
class Blocks {
 public:
  explicit Blocks(const GemmBlock& g) : g_(g), finish_(Finisher<Vec>::make(*g.epilogue)) {}

  void run() {
    // Weights that L2 does not hold beside x are taken a part at a time, through all rows.
    const int64_t column = g_.panel_bytes / kPanel, parts = ceil_div(g_.cols * column, kNearBytes);
    const int64_t each = round_up(ceil_div(g_.cols, parts), 64);
    for (int64_t j = 0; j < g_.cols; j += each)
      for (int64_t line = 0; line < g_.lines; ++line) {
        const int64_t end = j + each < g_.cols ? j + each : g_.cols;
        int64_t r = 0;
        for (; r + 16 < g_.rows; r += 32) row<2>(line, r, j, end);
        if (r < g_.rows) row<1>(line, r, j, end);
      }
    AnyTypes(g_, finish_, sums_[turn_ ^ 1], 1).store_rest();
  }

 private:
  static constexpr int64_t kNearBytes = 512 * 1024;
  const GemmBlock& g_;
  const Finisher<Vec> finish_;
  Tiles tiles_;
  Sums sums_[2];
  int turn_ = 0;

  template <int A>
  QK_METHOD void row(int64_t line, int64_t r, int64_t j, int64_t end) {
    if constexpr (A == 1)
      for (; j + 48 < end; j += 64) block<A, 4>(line, r, j);
    for (; j + 16 < end; j += 32) block<A, 2>(line, r, j);
    if (j < end) block<A, 1>(line, r, j);
  }

  template <int A, int P>
  QK_METHOD void block(int64_t line, int64_t r, int64_t j) {
    const int8_t *a = g_.a + line * g_.line_stride + r * g_.lda, *b = g_.b + j / kPanel * g_.panel_bytes;
    Sums& own = sums_[turn_];
    const Sums& before = sums_[turn_ ^= 1];
    (*product_of<A, P>(before))(tiles_, a, b, g_, own.acc, finish_, before);
    own.hold(g_, j, P, line * g_.rows + r, g_.rows - r < A * 16 ? g_.rows - r : A * 16);
  }

  template <int A, int P>
  QK_METHOD auto product_of(const Sums& before) {
    if constexpr (!std::is_void_v<T> && A * P == 4)
      if (before.whole && before.pairs == P / 2) return multiply<A, P, typename T::template Known<P / 2>>;
    return multiply<A, P, AnyTypes>;
  }
};

template <DType Out, Residual R>
void run_known(const GemmBlock& g) {
  if (g.one_scale) Blocks<Types<true, Out, R>>(g).run();
  else Blocks<Types<false, Out, R>>(g).run();
}

template <DType Out>
void run_to(const GemmBlock& g) {
  const Epilogue& e = *g.epilogue;
  if (!e.residual) run_known<Out, Residual::none>(g);
  else if (e.residual_type == DType::f32) run_known<Out, Residual::f32>(g);
  else if (e.residual_type == DType::s8) run_known<Out, Residual::s8>(g);
  else Blocks<void>(g).run();
}

void run(const GemmBlock& g) {
  const Epilogue& e = *g.epilogue;
  if (e.activation != Function::identity) Blocks<void>(g).run();
  else if (e.out_type == DType::s8) run_to<DType::s8>(g);
  else if (e.out_type == DType::f32) run_to<DType::f32>(g);
  else Blocks<void>(g).run();
}

}  // namespace

#if defined(QK_AMX_EMULATED)
void gemm_s8_32x32_amx_emulated(const GemmBlock& g) {
#else
void gemm_s8_32x32_amx(const GemmBlock& g) {
#endif
  run(g);
}

#if defined(QK_AMX_EMULATED)
int64_t gemm_s8_32x32_amx_emulated_peak(int64_t rounds) {
#else
int64_t gemm_s8_32x32_amx_peak(int64_t rounds) {
#endif
  Tiles tiles;
  alignas(64) const int8_t zeros[16 * 64] = {};
  tiles.load<4>(zeros, 64);
  tiles.load<5>(zeros, 64);
  tiles.load<6>(zeros, 64);
  tiles.load<7>(zeros, 64);
  tiles.zero<0>();
  tiles.zero<1>();
  tiles.zero<2>();
  tiles.zero<3>();
  for (int64_t i = 0; i < rounds; ++i) {
    tiles.dot<0, 4, 6>();
    tiles.dot<1, 4, 7>();
    tiles.dot<2, 5, 6>();
    tiles.dot<3, 5, 7>();
  }
  return rounds * 4 * 16 * 16 * 64 * 2;
}

}  // namespace qk
