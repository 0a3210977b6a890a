// C[32x32] += a[32][k] * b[k][32] with tdpbusd on 2 x 2 tiles of 16 x 16, or C[16x64] on 1 x 4 where rows are few;
// a is stored as a ^ 0x80, so its row offset holds 128 more.
//
//              tmm6: b panel 0   tmm7: b panel 1     one k step is 64 deep: a tile is 16 rows x 64 bytes as
//   tmm4: a 0..15    tmm0              tmm1          they lie, b tile 16 groups of four k x 16 channels
//   tmm5: a 16..31   tmm2              tmm3
// Rows outside, panels inside, a part of the weights that L2 holds at a time: C is written along its rows, a's rows stay in L1,
// which tiles of b are read past. The sums of a block are stored a few rows at a time between the tile products of the next
// one, which leave the vector units idle (measured: some 12 vector instructions a product, with four tile loads a step).
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

// Sums that are yet to be stored: pairs of panels, each [rows][32]. Their rows are one run of C, or one a tile of a.
struct Sums {
  struct Run {
    int64_t first, rows;
    int64_t gap;                 // of C, elements before them besides rows
  };
  alignas(64) int32_t acc[32 * 32];
  int64_t j, pairs = 0, runs = 0;
  Run run[2] = {};
  bool whole = false;            // all columns exist, and no line of C ends between the rows of a run

  const int32_t* sums(int64_t i, int64_t pair) const { return acc + (pair + i) * 16 * 32; }
  int64_t rows() const { return run[0].rows + run[1].rows; }

  void hold(const GemmBlock& g, int64_t column, int64_t panels) {
    j = column, pairs = (panels + 1) / 2, runs = 0, run[1].rows = 0;
    whole = j + pairs * 32 <= g.cols;
  }
  void add(const GemmBlock& g, int64_t first, int64_t rows) {
    const int64_t line = g.c_gap ? (g.c_column + first) / g.c_line : 0;
    run[runs++] = {first, rows, line * g.c_gap};
    whole = whole && (!g.c_gap || g.c_column + first + rows <= (line + 1) * g.c_line);
  }
};

// Stores them a few rows at a time, of any types.
class AnyTypes {
 public:
  QK_METHOD AnyTypes(const GemmBlock& g, const Finisher<Vec>&, const Sums& sums, int64_t steps)
      : sums_(sums), share_(round_up(ceil_div(sums.rows(), steps), 2)) {
    for (int64_t i = 0; i < sums.pairs; ++i) new (&columns_[i]) Columns<Vec, 2>(g, sums.j + i * 2 * kPanel);
  }
  QK_METHOD ~AnyTypes() {}       // of `columns_`, which hold nothing to end

  QK_METHOD void store() { store_rows(share_); }
  QK_METHOD void store_rest() {
    while (run_ < sums_.runs) store_rows(32);
  }

 private:
  const Sums& sums_;
  const int64_t share_;
  int64_t run_ = 0, done_ = 0;   // of the run at hand
  union {
    Columns<Vec, 2> columns_[2];
  };

  QK_METHOD void store_rows(int64_t most) {
    if (run_ == sums_.runs) return;
    const Sums::Run& run = sums_.run[run_];
    const int64_t left = run.rows - done_, count = most < left ? most : left;
    for (int64_t i = 0; i < sums_.pairs; ++i) columns_[i].store(sums_.sums(run_, i) + done_ * 32, run.first + done_, count);
    done_ += count;
    if (done_ == run.rows) ++run_, done_ = 0;
  }
};

// The same for whole sums of known types, with what their columns need in registers.
template <bool OneScale, DType Out, Residual R, Function F>
struct Types {
  template <int Pairs, int Runs>
  class Known {
   public:
    QK_METHOD Known(const GemmBlock& g, const Finisher<Vec>& finish, const Sums& sums, int64_t steps)
        : g_(g), sums_(sums), share_(ceil_div(sums.rows(), steps * Rows::at_once)) {
      for (int64_t i = 0; i < count; ++i) {
        Dequantizer<Vec> columns[N];
#pragma GCC unroll 2
        for (int v = 0; v < N; ++v) {
          columns[v] = Dequantizer<Vec>::make(*g.epilogue, g.n0 + column(i) + v * Vec::width);
          if (OneScale) columns[v].use(g.row_scale[0], g.row_offset[0]);
        }
        new (&rows_[i]) Rows(g, finish, columns);
      }
      begin_run();
    }
    QK_METHOD ~Known() {}        // of `rows_`, which hold nothing to end

    QK_METHOD void store() {
      for (int64_t i = 0; i < share_ && some_left(); ++i) store_some();
    }
    QK_METHOD void store_rest() {
      while (some_left()) store_some();
    }

   private:
    static constexpr int N = 2;
    static constexpr int64_t in_pair = 32 / (N * Vec::width), count = Pairs * in_pair;
    using Rows = KnownRows<Vec, N, OneScale, Out, R, F>;
    const GemmBlock& g_;
    const Sums& sums_;
    const int64_t share_;        // of at_once rows, after each step of K
    int64_t run_ = 0, done_ = 0, rows_of_run_;
    union {
      Rows rows_[count];
    };

    QK_METHOD int64_t column(int64_t i) const { return sums_.j + i * N * Vec::width; }

    QK_METHOD void begin_run() {
      done_ = 0, rows_of_run_ = sums_.run[run_].rows;
      for (int64_t i = 0; i < count; ++i) rows_[i].go_to(g_, column(i), sums_.run[run_].first, sums_.run[run_].gap);
    }

    QK_METHOD bool some_left() const { return done_ < rows_of_run_; }

    QK_METHOD void store_some() {
#pragma GCC unroll 2
      for (int64_t i = 0; i < count; ++i)
        rows_[i].store(sums_.sums(run_, i / in_pair) + done_ * 32 + i % in_pair * N * Vec::width, 32, rows_of_run_ - done_);
      done_ += Rows::at_once;
      if constexpr (Runs > 1)
        if (!some_left() && ++run_ < Runs) begin_run();
    }
  };
};

// A x P tiles of C into acc, `second` bytes between the tiles of a; a share of the block before is stored after each step of K.
template <int A, int P, class Later>
__attribute__((noinline)) void multiply(Tiles& t, const int8_t* a, int64_t second, const int8_t* b, const GemmBlock& g, int32_t* acc,
                                        const Finisher<Vec>& finish, const Sums& before) {
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
      if (A > 1) t.load<5>(x + second + k * 64, lda);
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
      lines(j, j + each < g_.cols ? j + each : g_.cols);
    AnyTypes(g_, finish_, sums_[turn_ ^ 1], 1).store_rest();
  }

 private:
  static constexpr int64_t kNearBytes = 512 * 1024;
  const GemmBlock& g_;
  const Finisher<Vec> finish_;
  Tiles tiles_;
  Sums sums_[2];
  int turn_ = 0;

  // Columns [j, end) of all lines: by tiles of a line, or of two lines that fill none.
  QK_METHOD void lines(int64_t j, int64_t end) {
    int64_t line = 0;
    for (; g_.rows <= 16 && line + 1 < g_.lines; line += 2) row<2>({line, 0, g_.line_stride, g_.rows, g_.rows}, j, end);
    for (; line < g_.lines; ++line) {
      int64_t r = 0;
      for (; r + 16 < g_.rows; r += 32) row<2>({line, r, 16 * g_.lda, g_.rows - r < 32 ? g_.rows - r : 32, 0}, j, end);
      if (r < g_.rows) row<1>({line, r, 0, g_.rows - r, 0}, j, end);
    }
  }

  struct RowTiles {
    int64_t line, r, second;     // bytes of a from the first tile to the second
    int64_t rows, next_rows;     // of this line, of the next one
  };

  template <int A>
  QK_METHOD void row(const RowTiles& at, int64_t j, int64_t end) {
    if constexpr (A == 1)
      for (; j + 48 < end; j += 64) block<A, 4>(at, j);
    for (; j + 16 < end; j += 32) block<A, 2>(at, j);
    if (j < end) block<A, 1>(at, j);
  }

  template <int A, int P>
  QK_METHOD void block(const RowTiles& at, int64_t j) {
    const int8_t *a = g_.a + at.line * g_.line_stride + at.r * g_.lda, *b = g_.b + j / kPanel * g_.panel_bytes;
    Sums& own = sums_[turn_];
    const Sums& before = sums_[turn_ ^= 1];
    (*product_of<A, P>(before))(tiles_, a, at.second, b, g_, own.acc, finish_, before);
    own.hold(g_, j, P);
    own.add(g_, at.line * g_.rows + at.r, at.rows);
    if (at.next_rows) own.add(g_, (at.line + 1) * g_.rows, at.next_rows);
  }

  template <int A, int P>
  QK_METHOD auto product_of(const Sums& before) {
    if constexpr (!std::is_void_v<T> && A * P == 4)
      if (before.whole && before.pairs == P / 2) {
        if (before.runs == 1) return multiply<A, P, typename T::template Known<P / 2, 1>>;
        if constexpr (A == 2) return multiply<A, P, typename T::template Known<P / 2, 2>>;
      }
    return multiply<A, P, AnyTypes>;
  }
};

void run(const GemmBlock& g) {
  const Epilogue& e = *g.epilogue;
  const auto run_known = [&]<bool OneScale, DType Out, Residual R, Function F>() { Blocks<Types<OneScale, Out, R, F>>(g).run(); };
  if (!with_known_types(e, g.one_scale, run_known)) Blocks<void>(g).run();
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
  alignas(64) int8_t bytes[16 * 64];
  for (int i = 0; i < 16 * 64; ++i) bytes[i] = int8_t(i * 89 + (i >> 3));  // zeros would take less power, and go faster
  tiles.load<4>(bytes, 64);
  tiles.load<5>(bytes, 64);
  tiles.load<6>(bytes, 64);
  tiles.load<7>(bytes, 64);
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
