// Where a GEMM's rows of x come from, 16 bytes at a time.
#pragma once
#include "../core/padding.h"
#include "index.h"
#include "prim.cuh"

namespace qk::cuda {

// Rows that lie in memory: `stride` bytes apart, a multiple of 16, readable up to K rounded up to 16. What is behind K
// meets weights of zero.
struct Rows {
  static constexpr bool large_tiles = true;
  const int8_t* x;
  int64_t m, stride;
  int k;

  struct Row {
    const int8_t* from;
    bool exists;
  };
  QK_METHOD Row row(int64_t r) const { return {x + (r < m ? r : 0) * stride, r < m}; }
  QK_METHOD int column(int at) const { return at; }
  QK_METHOD void copy(void* to, const Row& row, int at) const {
    const bool exists = row.exists && at < k;
    copy_async<16>(to, exists ? row.from + at : x, exists);
  }
};

// Windows of an int8 NHWC image, a row an output pixel. K is that of core/layout.h: kernel rows, each padded to four
// bytes, then columns, then the channels of the layout's group block_z().
struct Image {
  const int8_t* x;             // [batch][h][w][c]
  int h, w, c, channels;       // channels of one group
  int stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left;
  PadMode pad_mode;
  int64_t m;
  Divisor pixels, line;        // of an output image, of a line of it
  Divisor row_k, tap_k;        // bytes of K in a kernel row with its padding, in one tap
  int k, used_k;               // all of K; bytes of a kernel row without its padding
  const int32_t* x_zero;       // what `zeros` pads with: one an image, or one
  bool zero_each;

  struct Row {                 // few words: a thread keeps those of all its rows
    int image, h, w;           // of the first tap; a row that does not exist lies outside of its image
  };
  QK_METHOD Row row(int64_t r) const {
    const uint32_t at = uint32_t(r < m ? r : 0), image = pixels.quotient(at), pixel = at - image * pixels.divisor;
    const uint32_t y = line.quotient(pixel);
    return {int(image), r < m ? int(y) * stride_h - pad_top : -(1 << 30), int(pixel - y * line.divisor) * stride_w - pad_left};
  }

  // The zero point, four times.
  QK_METHOD uint32_t zeros(const Row& row) const {
    const int32_t zero = global_load<int32_t>(x_zero + (zero_each ? row.image : 0));
    return uint32_t(uint8_t(zero)) * 0x01010101u;
  }

  struct Tap {
    int dh, dw, channel;
    bool exists;
  };
  QK_METHOD Tap tap(int at) const {
    const uint32_t y = row_k.quotient(uint32_t(at)), within = uint32_t(at) - y * row_k.divisor, s = tap_k.quotient(within);
    return {int(y) * dilation_h, int(s) * dilation_w, int(within - s * tap_k.divisor), at < k && int(within) < used_k};
  }

  // Where a tap reads; null where that is the zero point.
  QK_METHOD const int8_t* at(const Row& row, const Tap& tap) const {
    int y = row.h + tap.dh, s = row.w + tap.dw;
    if (pad_mode != PadMode::zeros) {
      y = int(source_index(y, h, pad_mode));
      s = int(source_index(s, w, pad_mode));
    }
    const bool inside = unsigned(y) < unsigned(h) && unsigned(s) < unsigned(w);
    return inside ? x + ((int64_t(row.image) * h + y) * w + s) * c + block_z() * channels + tap.channel : nullptr;
  }
};

// Taps of a multiple of 16 channels, at addresses that are one too; or of 4, four at a time.
template <int Bytes>
struct Windows : Image {
  static constexpr bool large_tiles = true;
  static constexpr int kParts = 16 / Bytes;
  struct Column {
    Tap taps[kParts];
  };
  QK_METHOD Column column(int at) const {
    Column column;
    QK_UNROLL for (int i = 0; i < kParts; ++i) column.taps[i] = tap(at + i * Bytes);
    return column;
  }
  QK_METHOD void copy(char* to, const Row& row, const Column& column) const {
    QK_UNROLL for (int i = 0; i < kParts; ++i) {
      const bool exists = column.taps[i].exists;
      const int8_t* const from = exists ? at(row, column.taps[i]) : x;
      if (from) {
        copy_async<Bytes>(to + i * Bytes, from, exists);
        continue;
      }
      const uint32_t zero = zeros(row);
      if constexpr (Bytes == 16) shared_store(to, Words{{zero, zero, zero, zero}});
      else shared_store(to + i * Bytes, zero);
    }
  }
};

// Any number of channels, byte by byte.
struct AnyWindows : Image {
  static constexpr bool large_tiles = false;  // would not fit the registers
  QK_METHOD int column(int at) const { return at; }
  QK_METHOD void copy(char* to, const Row& row, int first) const {
    QK_ROLL for (int i = 0; i < 16; i += 4) {
      uint32_t word = 0;
      for (int b = 0; b < 4; ++b) {
        const Tap one = tap(first + i + b);
        if (!one.exists) continue;
        const int8_t* const from = at(row, one);
        const uint32_t value = from ? uint8_t(global_load<int8_t>(from)) : zeros(row) & 255;
        word |= value << (8 * b);
      }
      shared_store(to + i, word);
    }
  }
};

}  // namespace qk::cuda
