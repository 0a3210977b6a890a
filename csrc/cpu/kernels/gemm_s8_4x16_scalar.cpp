// C[4x16] += a[4][k] * b[k][16] in plain C++: runs anywhere, and what the other kernels are compared with.
#include "gemm_block.h"

#include "../vec/scalar.h"

namespace qk {
namespace {

struct ScalarTile {
  template <int R, int P>
  QK_INLINE void run(const int8_t* a, const int8_t* b, const GemmBlock& g, const Ahead&, int32_t* acc) {
    for (int i = 0; i < R * 16; ++i) acc[i] = 0;
    for_pieces(a, b, g, [&](const int8_t* x, const int8_t* w) {
      for (int64_t k = 0; k < g.k4; ++k)
        for (int r = 0; r < R; ++r)
          for (int n = 0; n < 16; ++n)
            for (int j = 0; j < 4; ++j) acc[r * 16 + n] += int32_t(x[r * g.lda + k * 4 + j]) * w[k * 64 + n * 4 + j];
    });
  }
};

}  // namespace

void gemm_s8_4x16_scalar(const GemmBlock& g) { gemm_columns<Scalar, ScalarTile, 4, 1>(g); }

int64_t gemm_s8_4x16_scalar_peak(int64_t rounds) {
  int32_t sum = 0, x = 3;
  for (int64_t i = 0; i < rounds; ++i) {
    asm volatile("" : "+r"(x));
    sum += x * 5;
    asm volatile("" : "+r"(sum));
  }
  return rounds * 2;
}

}  // namespace qk
