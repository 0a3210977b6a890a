// Where things lie, as plain functions that host and device share and tests can exhaust.
#pragma once
#include <cstdint>

#include "../core/layout.h"

namespace qk::cuda {

// A tile of x in shared memory: rows of BK bytes in 16-byte chunks, moved about so that the eight rows of a matrix that
// ldmatrix reads (same chunk, neighbouring rows) lie in eight different groups of banks.
template <int BK>
constexpr int x_chunk(int row, int chunk) {
  static_assert(BK == 64 || BK == 128);
  return BK == 128 ? chunk ^ (row & 7) : chunk ^ (row >> 1 & 3);
}

// A panel of the packed weight in shared memory: rows of four 16-byte pieces, a row for each K quad. The quarter of a
// warp that is served at once reads two neighbouring pieces of four neighbouring rows.
constexpr int w_piece(int row, int piece) { return piece ^ (row & 2); }

// The same panel as the copy engine leaves it: two rows are a line of 128 bytes, whose chunks are swizzled as those of x.
constexpr int w_swizzled(int row, int piece) {
  const int at = row * 64 + piece * 16;
  return at ^ (at >> 7 & 7) << 4;
}
// The piece that a group of four lanes takes there. Neighbours, served together, take every other one: the swizzle keeps
// neighbouring pieces in the same four groups of banks.
constexpr int w_piece_of_group(int group) { return (group & 1) * 2 + (group >> 1 & 1); }

// Sums in shared memory: words of a row, moved so that neither rows that are written together meet, nor neighbours of
// a column.
constexpr int sum_word(int row, int column) { return column ^ (row & 7) * 4; }

// Division of n in [0, 2^31) by one divisor, as a product (Granlund and Montgomery 1994).
struct Divisor {
  uint32_t divisor = 1, multiplier = uint32_t(1) << 31;
  int shift = 0;

  constexpr Divisor() = default;
  constexpr explicit Divisor(int64_t d) : divisor(uint32_t(d)) {
    while ((int64_t(1) << shift) < d) ++shift;
    multiplier = uint32_t(((uint64_t(1) << (31 + shift)) + uint64_t(d) - 1) / uint64_t(d));
  }
  constexpr uint32_t quotient(uint32_t n) const { return uint32_t(uint64_t(2 * n) * multiplier >> 32) >> shift; }
  constexpr uint32_t remainder(uint32_t n) const { return n - quotient(n) * divisor; }
};

// Blocks in an order that keeps neighbours in the L2 cache: bands of eight tiles of rows, channel by channel.
struct Raster {
  int64_t m_tiles, n_tiles;
  static constexpr int64_t kBand = 8;

  struct At {
    int64_t m, n;
  };
  constexpr At at(int64_t block) const {
    const int64_t first = block / (kBand * n_tiles) * kBand, within = block % (kBand * n_tiles);
    const int64_t rows = m_tiles - first < kBand ? m_tiles - first : kBand;
    return {first + within % rows, within / rows};
  }
};

}  // namespace qk::cuda
