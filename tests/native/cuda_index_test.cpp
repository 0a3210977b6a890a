// Where things lie and what is planned, exhaustively or over many sizes; plain functions, no emulator.
#include <cstdio>
#include <set>
#include <vector>

#include "../../csrc/core/elements.h"
#include "../../csrc/cuda/index.h"
#include "../../csrc/cuda/plan.h"

namespace {

using namespace qk;
using namespace qk::cuda;

int failures = 0;

void expect(bool good, const char* what, int64_t a = 0, int64_t b = 0, int64_t c = 0) {
  if (good) return;
  std::printf("%s: %lld %lld %lld\n", what, (long long)a, (long long)b, (long long)c);
  ++failures;
}

template <int BK>
void test_x_chunks() {
  for (int row = 0; row < 64; ++row) {
    std::set<int> seen;
    for (int chunk = 0; chunk < BK / 16; ++chunk) seen.insert(x_chunk<BK>(row, chunk));
    expect(int(seen.size()) == BK / 16 && *seen.rbegin() == BK / 16 - 1, "chunks of a row are not a permutation", BK, row);
  }
  for (int first = 0; first < 64; first += 8)
    for (int chunk = 0; chunk < BK / 16; ++chunk) {
      std::set<int> banks;
      for (int row = first; row < first + 8; ++row) banks.insert((row * (BK / 16) + x_chunk<BK>(row, chunk)) % 8);
      expect(banks.size() == 8, "a matrix meets itself in a bank", BK, first, chunk);
    }
}

void test_w_pieces() {
  for (int first = 0; first < 32; first += 4)  // a quarter of a warp: four quads by two neighbouring pieces
    for (int piece = 0; piece < 4; piece += 2) {
      std::set<int> banks;
      for (int i = 0; i < 8; ++i) banks.insert(((first + i % 4) * 4 + w_piece(first + i % 4, piece + i / 4)) % 8);
      expect(banks.size() == 8, "a quarter of a warp meets itself in a bank", first, piece);
    }
}

// As above for a panel that the copy engine swizzled; in 16 lanes, groups and their pieces meet.
void test_w_swizzled() {
  std::set<int> seen;
  for (int row = 0; row < 32; ++row)
    for (int piece = 0; piece < 4; ++piece) seen.insert(w_swizzled(row, piece));
  expect(seen.size() == 128 && *seen.rbegin() == 127 * 16, "pieces of a panel are not a permutation");
  for (int first = 0; first < 32; first += 4)
    for (int group = 0; group < 4; group += 2) {
      std::set<int> banks;
      for (int i = 0; i < 8; ++i) banks.insert(w_swizzled(first + i % 4, w_piece_of_group(group + i / 4)) / 16 % 8);
      expect(banks.size() == 8, "a quarter of a warp meets itself in a bank", first, group);
    }
}

void test_sum_words() {
  for (int row = 0; row < 16; ++row)
    for (int width : {64, 128}) {
      std::set<int> seen;
      for (int column = 0; column < width; ++column) {
        const int word = sum_word(row, column);
        expect(word % 4 == column % 4, "four sums are torn apart", row, column);
        seen.insert(word);
      }
      expect(int(seen.size()) == width && *seen.rbegin() == width - 1, "words of a row are not a permutation", row, width);
    }
}

void test_divisor() {
  std::vector<int64_t> values;
  for (int64_t v = 1; v < 300; ++v) values.push_back(v);
  for (int bit = 8; bit < 31; ++bit)
    for (int64_t near = -2; near <= 2; ++near) values.push_back((int64_t(1) << bit) + near);
  for (int64_t v : {12544, 50176, 16777259, 1431655765, 2147483646, 2147483647}) values.push_back(v);
  for (int64_t d : values) {
    const Divisor by(d);
    for (int64_t n : values)
      for (int64_t near : {n, n / d * d, n / d * d + d - 1}) {
        if (near > 0x7fffffff) continue;
        expect(by.quotient(uint32_t(near)) == near / d && by.remainder(uint32_t(near)) == near % d, "division", near, d);
      }
  }
}

void test_raster() {
  for (int64_t m = 1; m <= 20; ++m)
    for (int64_t n = 1; n <= 9; ++n) {
      const Raster raster{m, n};
      std::set<std::pair<int64_t, int64_t>> seen;
      for (int64_t block = 0; block < m * n; ++block) {
        const Raster::At at = raster.at(block);
        expect(at.m >= 0 && at.m < m && at.n >= 0 && at.n < n, "a block lies outside", m, n, block);
        seen.insert({at.m, at.n});
      }
      expect(int64_t(seen.size()) == m * n, "a tile has no block", m, n);
    }
}

// No two elements of a weight in one place, and none in the padding of another group.
void test_elements() {
  for (int64_t groups : {1, 2, 3, 8})
    for (int64_t c : {1, 3, 5, 16})
      for (int64_t n : {1, 3, 16, 20})
        for (int64_t k : {1, 3}) {
          const WeightElements w(n * groups, c, k, 2, groups);
          std::set<int64_t> seen;
          for (int64_t o = 0; o < w.oc; ++o)
            for (int64_t ci = 0; ci < c; ++ci)
              for (int64_t y = 0; y < k; ++y)
                for (int64_t x = 0; x < 2; ++x) {
                  expect(w.k(o, ci, y, x) < w.layout.k && w.channel(o) < w.layout.n, "outside of the layout", o, ci, y);
                  seen.insert(w.layout.offset(w.group(o), w.channel(o), w.k(o, ci, y, x)));
                }
          expect(int64_t(seen.size()) == w.oc * w.each() && *seen.rbegin() < w.layout.values_bytes(), "elements meet", groups, c, n);
        }
}

void test_plan() {
  struct Row {
    int arch;
    int64_t m, n, groups;
    TileName tile;
  };
  const Row rows[] = {
      {75, 8192, 8192, 1, TileName::turing}, {80, 8192, 8192, 1, TileName::large},   {90, 8192, 8192, 1, TileName::large},
      {90, 17, 4096, 1, TileName::small},    {90, 128, 4096, 1, TileName::small},    {90, 128, 28672, 1, TileName::large},
      {90, 64, 28672, 1, TileName::medium},  {90, 200704, 64, 1, TileName::tall},   {90, 12544, 512, 1, TileName::large},
      {90, 3136, 512, 1, TileName::medium},  {90, 50176, 128, 1, TileName::large},   {90, 3136, 128, 32, TileName::large},
  };
  for (const Row& r : rows)
    expect(plan_tile({r.arch, 132}, r.m, r.n, r.groups) == r.tile, "plan", r.m, r.n, int64_t(plan_tile({r.arch, 132}, r.m, r.n, r.groups)));
}

// m, n, k, groups: splits
void test_splits() {
  const int64_t rows[][5] = {{32, 1024, 8192, 1, 8},  {32, 4096, 8192, 1, 2},  {32, 8192, 8192, 1, 1}, {32, 64, 65535, 1, 16},
                             {49, 512, 4608, 1, 8},   {49, 512, 2047, 1, 1},   {32, 64, 2048, 1, 4},   {32, 64, 2048, 64, 2},
                             {4096, 4096, 8192, 1, 1}};
  for (const auto& r : rows) {
    const Plan plan = plan_gemm({90, 132}, r[0], r[1], r[2], r[3]);
    expect(plan.splits == r[4], "splits", r[0], r[2], plan.splits);
  }
  const int hopper = int(TileName::hopper);
  expect(plan_gemm({90, 132, hopper}, 32, 1024, 8192, 1).splits == 1, "Hopper's blocks split K");
  expect(plan_gemm({90, 132, hopper}, 8192, 8192, 8192, 1).blocks == 132, "blocks that stay, of many tiles");
  expect(plan_gemm({90, 132, hopper}, 300, 200, 8192, 1).blocks == 4, "blocks that stay, of few tiles");
  expect(plan_gemm({90, 132, hopper}, 8192, 8192, 512, 200).blocks == 1, "blocks that stay, of many groups");
}

}  // namespace

int main() {
  test_x_chunks<64>();
  test_x_chunks<128>();
  test_w_pieces();
  test_w_swizzled();
  test_sum_words();
  test_divisor();
  test_raster();
  test_elements();
  test_plan();
  test_splits();
  return failures > 0;
}
