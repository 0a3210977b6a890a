// Moving pixels: convolution windows to rows of K, channel planes to pixels while quantizing, and blocks back to planes.
#pragma once
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "../../core/epilogue.h"
#include "../kernel.h"
#include "rows.h"

namespace qk {
namespace {

constexpr int64_t kGatherAhead = 20 * 1024;  // about a block of rows, whose products its arrival hides

template <int N>
struct Bytes {
  typedef int8_t type __attribute__((vector_size(N), aligned(1), may_alias));
};

template <int N>
QK_INLINE void copy_fixed(const int8_t* from, int8_t mask, int8_t* to) {
  using V = typename Bytes<N>::type;
  *reinterpret_cast<V*>(to) = *reinterpret_cast<const V*>(from) ^ mask;
}

// to[i] = from[i] ^ mask for exactly n bytes: whole vectors, the last one overlapping the one before.
QK_INLINE void copy_masked(const int8_t* from, int64_t n, int8_t mask, int8_t* to) {
  int64_t i = 0;
  if (n >= 32) {
    for (; i + 64 <= n; i += 64) {
      __builtin_prefetch(from + i + kGatherAhead, 0, 2);
      copy_fixed<64>(from + i, mask, to + i);
    }
    for (; i + 32 <= n; i += 32) copy_fixed<32>(from + i, mask, to + i);
    if (i < n) copy_fixed<32>(from + n - 32, mask, to + n - 32);
  } else if (n >= 16) {
    copy_fixed<16>(from, mask, to);
    copy_fixed<16>(from + n - 16, mask, to + n - 16);
  } else if (n >= 8) {
    copy_fixed<8>(from, mask, to);
    copy_fixed<8>(from + n - 8, mask, to + n - 8);
  } else {
    for (; i < n; ++i) to[i] = from[i] ^ mask;
  }
}

// Neighbouring output pixels' windows to rows of K. `copy` moves one piece.
template <class Copy>
QK_INLINE void gather_pieces(const GatherRun& g, Copy copy) {
  for (int64_t p = 0; p < g.pixels; ++p) {
    const int8_t* x = g.x + p * g.pixel_stride;
    int8_t* a = g.a + p * g.lda;
    for (int64_t i = 0; i < g.rows; ++i)
      for (int64_t j = 0; j < g.columns; ++j)
        copy(x + i * g.row_stride + j * g.column_stride, a + i * g.row_pitch + j * g.piece);
  }
}

// Short pieces are moved as one vector where the bytes behind them may be touched: the next piece overwrites them.
template <class V>
void gather(const GatherRun& run) {
  const GatherRun g = run;
  const int8_t mask = g.flip ? -128 : 0;
  const int64_t room = g.lda - (g.rows - 1) * g.row_pitch - (g.columns - 1) * g.piece;
  if (g.slack && g.piece <= 16 && room >= 16)
    gather_pieces(g, [=](const int8_t* from, int8_t* to) { copy_fixed<16>(from, mask, to); });
  else if (g.slack && g.piece <= 32 && room >= 32)
    gather_pieces(g, [=](const int8_t* from, int8_t* to) { copy_fixed<32>(from, mask, to); });
  else
    gather_pieces(g, [=](const int8_t* from, int8_t* to) { copy_masked(from, g.piece, mask, to); });
}

#if defined(__SSE2__)
// out[i][j] = in[j][i], 16 x 16 bytes: four rounds of unpacking double the width of what lies together.
QK_INLINE void transpose_16x16(const int8_t* in, int64_t in_stride, int8_t* out, int64_t out_stride) {
  __m128i a[16], b[16];
  for (int i = 0; i < 16; ++i) a[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i * in_stride));
  for (int round = 0; round < 4; ++round) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      b[2 * i] = _mm_unpacklo_epi8(a[i], a[i + 8]);
      b[2 * i + 1] = _mm_unpackhi_epi8(a[i], a[i + 8]);
    }
    for (int i = 0; i < 16; ++i) a[i] = b[i];
  }
  for (int i = 0; i < 16; ++i) _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i * out_stride), a[i]);
}
#else
QK_INLINE void transpose_16x16(const int8_t* in, int64_t in_stride, int8_t* out, int64_t out_stride) {
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 16; ++j) out[i * out_stride + j] = in[j * in_stride + i];
}
#endif

// Channel planes to int8 pixels: pieces of 16 planes are quantized into L1, then turned 16 pixels at a time. A piece
// runs on over the ends of rows, so that short rows cost no more than long ones.
template <class V>
void interleave(const PlanesToPixels& p) {
  constexpr int64_t kPiece = 256;
  alignas(64) int8_t planes[16][kPiece], block[16][16];
  const int64_t pixels = p.rows * p.columns;
  for (int64_t first = 0; first < pixels; first += kPiece) {
    const int64_t piece = pixels - first < kPiece ? pixels - first : kPiece;
    for (int64_t c0 = 0; c0 < p.channels; c0 += 16) {
      const int64_t channels = p.channels - c0 < 16 ? p.channels - c0 : 16;
      for (int64_t c = 0; c < channels; ++c) {
        const char* x = static_cast<const char*>(p.x) + ((c0 + c) * p.plane_stride + first) * size_of(p.x_type);
        quantize<V>(x, p.x_type, piece, p.inv_scale, p.zero, p.flip, planes[c]);
      }
      int64_t column = first % p.columns;
      int8_t* out = p.out + first / p.columns * p.row_stride + column * p.channels + c0;
      for (int64_t w = 0; w < piece; w += 16) {  // a last short block turns bytes that nothing reads
        transpose_16x16(planes[0] + w, kPiece, block[0], 16);
        const int64_t count = piece - w < 16 ? piece - w : 16;
        for (int64_t i = 0; i < count; ++i) {
          const bool room = p.channels < 16 && (p.columns - column) * p.channels >= 16;  // the next pixels overwrite it
          if (channels == 16 || room) copy_fixed<16>(block[i], 0, out);
          else copy_masked(block[i], channels, 0, out);
          out += p.channels;
          if (++column == p.columns) {
            column = 0;
            out += p.row_stride - p.columns * p.channels;
          }
        }
      }
    }
  }
}

typedef int32_t Eight __attribute__((vector_size(32), aligned(4), may_alias));

// out[i][j] = in[j][i], 8 x 8 words.
QK_INLINE void transpose_8x8(const int32_t* in, int64_t in_stride, int32_t* out, int64_t out_stride) {
  typedef int32_t V __attribute__((vector_size(32)));
  V a[8], b[8];
  for (int i = 0; i < 8; ++i) a[i] = *reinterpret_cast<const Eight*>(in + i * in_stride);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    b[2 * i] = __builtin_shuffle(a[2 * i], a[2 * i + 1], V{0, 8, 1, 9, 4, 12, 5, 13});
    b[2 * i + 1] = __builtin_shuffle(a[2 * i], a[2 * i + 1], V{2, 10, 3, 11, 6, 14, 7, 15});
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    a[i] = __builtin_shuffle(b[i], b[i + 2], V{0, 1, 8, 9, 4, 5, 12, 13});
    a[i + 1] = __builtin_shuffle(b[i], b[i + 2], V{2, 3, 10, 11, 6, 7, 14, 15});
    a[i + 2] = __builtin_shuffle(b[i + 1], b[i + 3], V{0, 1, 8, 9, 4, 5, 12, 13});
    a[i + 3] = __builtin_shuffle(b[i + 1], b[i + 3], V{2, 3, 10, 11, 6, 7, 14, 15});
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    *reinterpret_cast<Eight*>(out + i * out_stride) = __builtin_shuffle(a[i], a[i + 4], V{0, 1, 2, 3, 8, 9, 10, 11});
    *reinterpret_cast<Eight*>(out + (i + 4) * out_stride) = __builtin_shuffle(a[i], a[i + 4], V{4, 5, 6, 7, 12, 13, 14, 15});
  }
}

template <class T>
QK_INLINE void to_planes(const PixelsToPlanes& p, int64_t first_row, int64_t first_column) {
  const T* block = static_cast<const T*>(p.block);
  T* y = static_cast<T*>(p.y);
  for (int64_t n = first_column; n < p.channels; ++n)
    for (int64_t r = first_row; r < p.pixels; ++r) y[n * p.plane_stride + r] = block[r * p.stride + n];
}

// A block of outputs [pixels][channels] to its channel planes.
template <class V>
void deinterleave(const PixelsToPlanes& p) {
  if (p.item == 1) return to_planes<int8_t>(p, 0, 0);
  if (p.item == 2) return to_planes<int16_t>(p, 0, 0);
  const int32_t* block = static_cast<const int32_t*>(p.block);
  int32_t* y = static_cast<int32_t*>(p.y);
  const int64_t pixels = p.pixels / 8 * 8, channels = p.channels / 8 * 8;
  for (int64_t n = 0; n < channels; n += 8)
    for (int64_t r = 0; r < pixels; r += 8)
      transpose_8x8(block + r * p.stride + n, p.stride, y + n * p.plane_stride + r, p.plane_stride);
  to_planes<int32_t>(p, 0, channels);
  PixelsToPlanes rest = p;
  rest.channels = channels;
  to_planes<int32_t>(rest, pixels, 0);
}

}  // namespace
}  // namespace qk
