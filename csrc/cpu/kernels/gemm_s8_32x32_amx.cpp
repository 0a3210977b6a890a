// C[32x32] += a[32][k] * b[k][32] with tdpbssd on 2 x 2 tiles of 16 x 16, or C[16x64] on 1 x 4 where rows are few.
//
//              tmm6: b panel 0   tmm7: b panel 1     one k step is 64 deep: a tile is 16 rows x 64 bytes as
//   tmm4: a 0..15    tmm0              tmm1          they lie, b tile 16 groups of four k x 16 channels
//   tmm5: a 16..31   tmm2              tmm3
// Rows outside, panels inside: C is written along its rows while the row panel of a stays in L1. The sums of a block are
// stored a few rows at a time between the tile products of the next one, which leave the vector units idle.
#include <new>

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

// A block whose sums are yet to be stored: pairs of panels, each [rows][32].
class Waiting {
 public:
  alignas(64) int32_t acc[32 * 32];

  Waiting() {}
  ~Waiting() {}  // of `pair`, which holds nothing to end

  void hold(const GemmBlock& g, int64_t j, int64_t panels, int64_t first, int64_t rows) {
    pairs_ = (panels + 1) / 2;
    first_ = first;
    rows_ = rows;
    pitch_ = panels > 2 ? 16 * 32 : 0;
    done_ = 0;
    for (int64_t i = 0; i < pairs_; ++i) new (&pair_[i]) Columns<Vec, 2>(g, j + i * 2 * kPanel);
  }
  QK_METHOD void store(int64_t rows) {
    if (done_ == rows_) return;
    const int64_t count = rows < rows_ - done_ ? rows : rows_ - done_;
    for (int64_t i = 0; i < pairs_; ++i) pair_[i].store(acc + i * pitch_ + done_ * 32, first_ + done_, count);
    done_ += count;
  }

 private:
  union {
    Columns<Vec, 2> pair_[2];
  };
  int64_t pairs_ = 0, pitch_ = 0, first_ = 0, rows_ = 0, done_ = 0;
};

// A x P tiles of C into own.acc; a share of `before` is stored after each step of k.
template <int A, int P>
QK_INLINE void multiply(Tiles& t, const int8_t* a, const int8_t* b, const GemmBlock& g, Waiting& own, Waiting& before) {
  const int64_t lda = g.lda, panel_bytes = g.panel_bytes, k64 = ceil_div(g.k4, 16);
  const int64_t steps = g.piece_rows * g.piece_columns * k64, share = round_up(ceil_div(32, steps), 2);
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
        if (row == 0) t.load<6 + column % 2>(w + column * panel_bytes + k * 1024, 64);
        t.dot<row * P + column, 4 + row, 6 + column % 2>();
      });
      before.store(share);
    }
  });
  before.store(32);
  for_tiles([&]<int I>() QK_LAMBDA {
    constexpr int row = I / P, column = I % P;
    t.store<I>(own.acc + column / 2 * 16 * 32 + row * 16 * 32 + column % 2 * 16, 128);
  });
}

// The blocks of a kernel call, one after the other.
struct Blocks {
  Tiles tiles;
  Waiting waiting[2];
  int turn = 0;

  template <int A, int P>
  QK_METHOD void block(int64_t line, int64_t r, int64_t j, const GemmBlock& g) {
    const int64_t rows = g.rows - r < A * 16 ? g.rows - r : A * 16;
    Waiting& own = waiting[turn];
    turn ^= 1;
    multiply<A, P>(tiles, g.a + line * g.line_stride + r * g.lda, g.b + j / kPanel * g.panel_bytes, g, own, waiting[turn]);
    own.hold(g, j, P, line * g.rows + r, rows);
  }

  template <int A>
  QK_METHOD void row(int64_t line, int64_t r, const GemmBlock& g) {
    int64_t j = 0;
    if constexpr (A == 1)
      for (; j + 48 < g.cols; j += 64) block<A, 4>(line, r, j, g);
    for (; j + 16 < g.cols; j += 32) block<A, 2>(line, r, j, g);
    if (j < g.cols) block<A, 1>(line, r, j, g);
  }

  void run(const GemmBlock& g) {
    for (int64_t line = 0; line < g.lines; ++line) {
      int64_t r = 0;
      for (; r + 16 < g.rows; r += 32) row<2>(line, r, g);
      if (r < g.rows) row<1>(line, r, g);
    }
    waiting[turn ^ 1].store(32);
  }
};

}  // namespace

#if defined(QK_AMX_EMULATED)
void gemm_s8_32x32_amx_emulated(const GemmBlock& g) {
#else
void gemm_s8_32x32_amx(const GemmBlock& g) {
#endif
  Blocks().run(g);
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
