// Depthwise convolution by dot products of four bytes: four neighbouring columns of one channel in each 32-bit lane.
//
//   quad w of an input row: columns 2w .. 2w+3       serves output pixels 2w (weights w0 w1 w2 0)
//   [channel: x0 x1 x2 x3], 16 channels = 64 bytes                    and 2w+1 (weights 0 w0 w1 w2)
//
// A panel of 16 channels goes down the lines. Quads of each input row are built once into a ring of rows in L1 and read
// by all KH lines above them; a wider kernel reads the quads further right too. Vectors hold L windows by 16 / NV
// channels, so that sums pack to whole pixels without crossing lanes. With stride above 2 or dilation, quads belong to
// one pixel.
#pragma once
#include "../../core/epilogue.h"
#include "../kernel.h"

namespace qk {
namespace {

template <class V>
struct Depthwise {
  static constexpr int64_t windows = V::width < 4 ? 1 : V::width / 4;   // of a vector
  static constexpr int64_t vectors = 16 * windows / V::width;           // that hold 16 channels of them
  using Sums = typename V::I[vectors];
  using Floats = typename V::F[vectors];
  template <class T>
  using Channels __attribute__((vector_size(64))) = T;

  // Sixteen 32-bit values, one a channel, as vectors of windows: each four of them repeated for all windows.
  template <class Values>
  QK_METHOD static void spread(const Values& values, void* out) {
    alignas(64) char bytes[64];
    __builtin_memcpy(bytes, &values, 64);
    for (int64_t v = 0; v < vectors; ++v)
      for (int64_t l = 0; l < windows; ++l)
        __builtin_memcpy(static_cast<char*>(out) + (v * V::width + l * 4) * 4, bytes + v * 64 / vectors, V::width < 4 ? 4 : 16);
  }

  // Four weights a channel for (kernel row i, quad q, pixel u of a window): columns 4q - u .. 4q - u + 3, 0 outside.
  QK_METHOD static void weights_of(const DepthwiseBlock& d, const int8_t* panel, int64_t i, int64_t q, int64_t u, int32_t* out) {
    const int64_t column = 4 * q - u, tap = i * d.kw + column, shift = (tap + 4) % 4 * 8, group = (tap + 4) / 4 - 1;
    uint32_t mask = 0;
    for (int64_t t = 0; t < 4; ++t)
      if (column + t >= 0 && column + t < d.kw) mask |= 0xffu << (8 * t);
    Channels<uint32_t> low{};
    if (group >= 0) __builtin_memcpy(&low, panel + group * 64, 64);
    if (shift) {
      Channels<uint32_t> high;
      __builtin_memcpy(&high, panel + (group + 1) * 64, 64);
      low = low >> uint32_t(shift) | high << uint32_t(32 - shift);
    }
    spread(low & mask, out);
  }

  static void prepare(const DepthwiseBlock& d, const DepthwiseShape& shape, const DepthwiseMemory& memory, int64_t c) {
    const int8_t* panel = d.weight + c / kPanel * d.panel_bytes;
    int32_t* out = memory.weights;
    for (int64_t i = 0; i < d.kh; ++i)
      for (int64_t q = 0; q < shape.quads; ++q)
        for (int64_t u = 0; u < shape.pixels; ++u, out += 16 * windows) weights_of(d, panel, i, q, u, out);
    const Epilogue& e = *d.epilogue;
    Channels<uint32_t> sums;
    Channels<float> scale, bias{};
    __builtin_memcpy(&sums, e.w_sum + c, 64);
    __builtin_memcpy(&scale, e.w_scale + c, 64);
    if (e.bias) __builtin_memcpy(&bias, e.bias + c, 64);
    spread(sums * -uint32_t(d.x_zero + V::dot4_offset), memory.start);
    spread(scale * d.x_scale, memory.scale);
    spread(bias, memory.bias);
  }

  // Two columns of `windows` windows, `step` bytes from one to the next: channels 0-7 and 8-15, byte by byte.
  struct Pair {
    typename V::B low, high;
    QK_METHOD static Pair of(const int8_t* x, int64_t tap, int64_t step, int8_t mask) {
      const auto a = V::load_lanes(x, step), b = V::load_lanes(x + tap, step);
      return {V::xor_bytes(V::unpack_bytes_low(a, b), mask), V::xor_bytes(V::unpack_bytes_high(a, b), mask)};
    }
  };

  // Channels 4 * v .. 4 * v + 3 of four columns to out + v * pitch.
  QK_METHOD static void store_quads(const Pair& left, const Pair& right, int8_t* out, int64_t pitch) {
    V::store_bytes(out, V::unpack_words_low(left.low, right.low));
    V::store_bytes(out + pitch, V::unpack_words_high(left.low, right.low));
    V::store_bytes(out + 2 * pitch, V::unpack_words_low(left.high, right.high));
    V::store_bytes(out + 3 * pitch, V::unpack_words_high(left.high, right.high));
  }

  // The quads of one input row; x is its first column under the first window. Rounded up to whole vectors.
  __attribute__((noinline)) static void fill_row(const DepthwiseBlock& d, const DepthwiseShape& s, const int8_t* x,
                                                 int64_t count, int8_t* out) {
    const int64_t tap = d.dilation_w * d.column_stride, step = s.step, pitch = s.pitch;
    const int8_t mask = d.x_mask ^ (V::dot4_offset ? -128 : 0);
    if (s.shared) {  // half of each quad is half of the next
      Pair left = Pair::of(x, tap, step, mask);
      for (int64_t w = 0; w < count + 2 * (s.quads - 1); w += windows) {
        const Pair next = Pair::of(x += windows * step, tap, step, mask);
        store_quads(left, {V::next_lane(left.low, next.low), V::next_lane(left.high, next.high)}, out + w * 16, pitch);
        left = next;
      }
      return;
    }
    for (int64_t q = 0; q < s.quads; ++q, x += 4 * tap, out += s.next_quad)
      for (int64_t w = 0; w < count; w += windows)
        store_quads(Pair::of(x + w * step, tap, step, mask), Pair::of(x + w * step + 2 * tap, tap, step, mask), out + w * 16, pitch);
  }

  // Sums of one pixel of each window of a vector to their places: any output, any count of pixels and channels. y and m
  // are of the first one; they are `step` pixels apart.
  __attribute__((noinline)) static void store_any(const Epilogue& e, const DepthwiseMemory& memory, const int32_t* acc,
                                                  int64_t m, int64_t c, int64_t channels, int64_t count, int64_t step, char* y) {
    constexpr int64_t parts = vectors / windows;  // vectors of a pixel
    const auto finish = Finisher<V>::make(e);
    const int64_t item = size_of(e.out_type);
    Floats values, pixels;
    for (int64_t v = 0; v < vectors; ++v)
      values[v] = V::fma(V::to_float(V::load_i32(acc + v * V::width)), V::load_f32(memory.scale + v * V::width),
                         V::load_f32(memory.bias + v * V::width));
    V::lanes_to_pixels(values, pixels);
    for (int64_t l = 0; l < windows && l < count; ++l)
      for (int64_t part = 0; part < parts && c + part * V::width < channels; ++part) {
        const int64_t n = c + part * V::width;
        finish(pixels[l * parts + part], finish.residual_at(m + l * step, n), channels - n,
               y + (l * step * channels + part * V::width) * item);
      }
  }

  // The same for whole panels of int8 or float32 without residual.
  template <DType Out>
  QK_METHOD static void store_plain(const Finisher<V>& finish, const Sums& acc, const Floats& scale, const Floats& bias,
                                    int64_t stride, char* y) {
    Floats values;
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) values[v] = V::fma(V::to_float(acc[v]), scale[v], bias[v]);
    if constexpr (Out == DType::s8) {
      typename V::I q[vectors];
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) q[v] = finish.round(values[v]);
      V::store_s8_pixels(reinterpret_cast<int8_t*>(y), stride, q, finish.e.out_zero, finish.e.out_mask);
    } else {
      constexpr int64_t parts = vectors / windows;
      Floats pixels;
      V::lanes_to_pixels(values, pixels);
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v)
        V::store_f32(reinterpret_cast<float*>(y + v / parts * stride) + v % parts * V::width, finish.clamp(pixels[v]));
    }
  }

  // Sums of U pixels of each window from window w on.
  template <int U, int Rows, int Quads>
  QK_METHOD static void sum(const DepthwiseMemory& memory, int64_t kh, int64_t quads, int64_t pitch, int64_t next_quad,
                            int64_t w, const Sums& start, Sums (&acc)[U]) {
#pragma GCC unroll 2
    for (int u = 0; u < U; ++u)
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) acc[u][v] = start[v];
    const auto add = [&](const int8_t* row, const int32_t* weights) QK_LAMBDA {
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) {
        const auto x = V::load_i32(reinterpret_cast<const int32_t*>(row + v * 4 / vectors * pitch) + v * V::width % 4);
#pragma GCC unroll 2
        for (int u = 0; u < U; ++u) acc[u][v] = V::dot4(acc[u][v], x, V::load_i32(weights + (u * vectors + v) * V::width));
      }
    };
    constexpr int64_t size = U * 16 * windows;
    if constexpr (Rows > 0) {
#pragma GCC unroll 8
      for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
        for (int q = 0; q < Quads; ++q)
          add(memory.rows[i] + w * 16 + q * next_quad, memory.weights + (i * Quads + q) * size);
    } else {
      const int32_t* weights = memory.weights;
      for (int64_t i = 0; i < kh; ++i)
        for (int64_t q = 0; q < quads; ++q, weights += size) {
          asm("" : "+r"(weights));  // or GCC makes vectors of one lane's quads, 250 KB of code
          add(memory.rows[i] + w * 16 + q * next_quad, weights);
        }
    }
  }

  struct Line {
    const DepthwiseBlock& d;
    const DepthwiseShape& shape;
    const DepthwiseMemory& memory;
    const Finisher<V>& finish;
    int64_t c, m, pixels, count;  // pixels and windows from here on
    char* y;
  };

  // One vector of windows, some of which may not exist, to any kind of output.
  template <int U>
  __attribute__((noinline)) static void edge(const Line& line, int64_t w) {
    const int64_t pixel_bytes = line.d.channels * size_of(line.finish.e.out_type);
    Sums start, acc[U];
    for (int v = 0; v < vectors; ++v) start[v] = V::load_i32(line.memory.start + v * V::width);
    sum<U, 0, 0>(line.memory, line.d.kh, line.shape.quads, line.shape.pitch, line.shape.next_quad, w, start, acc);
    alignas(64) int32_t sums[16 * windows];
    for (int u = 0; u < U; ++u) {
      for (int v = 0; v < vectors; ++v) V::store_i32(sums + v * V::width, acc[u][v]);
      store_any(line.finish.e, line.memory, sums, line.m + w * U + u, line.c, line.d.channels,
                (line.pixels - w * U - u + U - 1) / U, U, line.y + (w * U + u) * pixel_bytes);
    }
  }

  template <int U>
  static void line_of_any(const Line& line) {
    for (int64_t w = 0; w < line.count; w += windows) edge<U>(line, w);
  }

  // Whole panels of int8 or float32 without residual; the last vector overlaps the one before. Rows and Quads are the
  // kernel's where they are known.
  template <int U, int Rows, int Quads, DType Out>
  __attribute__((noinline)) static void line_of(const Line& line) {
    const DepthwiseMemory memory = line.memory;  // copies that no store can alias
    const Finisher<V> finish = line.finish;
    const int64_t kh = line.d.kh, quads = line.shape.quads, pitch = line.shape.pitch, next_quad = line.shape.next_quad;
    const int64_t pixel_bytes = line.d.channels * size_of(Out), whole = line.pixels / U;  // windows
    char* const y = line.y;
    Sums start;
    Floats scale, bias;
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) {
      start[v] = V::load_i32(memory.start + v * V::width);
      scale[v] = V::load_f32(memory.scale + v * V::width);
      bias[v] = V::load_f32(memory.bias + v * V::width);
    }
    int64_t w = 0;
    for (; w + windows <= whole; w = w + 2 * windows <= whole || w + windows == whole ? w + windows : whole - windows) {
      Sums acc[U];
      sum<U, Rows, Quads>(memory, kh, quads, pitch, next_quad, w, start, acc);
#pragma GCC unroll 2
      for (int u = 0; u < U; ++u)
        store_plain<Out>(finish, acc[u], scale, bias, U * pixel_bytes, y + (w * U + u) * pixel_bytes);
    }
    for (; w < line.count; w += windows) {  // of which not all exist: through a buffer
      alignas(64) char pixels[U * windows * 16 * size_of(Out)];
      Sums acc[U];
      sum<U, Rows, Quads>(memory, kh, quads, pitch, next_quad, w, start, acc);
      constexpr int64_t bytes = 16 * size_of(Out);
#pragma GCC unroll 2
      for (int u = 0; u < U; ++u) store_plain<Out>(finish, acc[u], scale, bias, U * bytes, pixels + u * bytes);
      for (int64_t i = 0; i < U * windows && w * U + i < line.pixels; ++i)
        __builtin_memcpy(y + (w * U + i) * pixel_bytes, pixels + i * bytes, bytes);
    }
  }

  // The same with an activation: float32 to a buffer, there all at once, then stored.
  template <int U, int Rows, int Quads>
  __attribute__((noinline)) static void line_activated(const Line& line) {
    alignas(64) float values[DepthwiseShape::kChunk * U * kPanel + 4 * V::width];
    const Epilogue& e = line.finish.e;
    const Epilogue plain;
    Epilogue clamped = e;
    clamped.activation = Function::identity;
    DepthwiseBlock d = line.d;
    d.channels = kPanel;
    line_of<U, Rows, Quads, DType::f32>({d, line.shape, line.memory, Finisher<V>::make(plain), 0, line.m, line.pixels, line.count,
                                         reinterpret_cast<char*>(values)});
    activate<V>(e.activation, e.parameter, values, line.pixels * kPanel);
    const auto finish = Finisher<V>::make(clamped);
    const int64_t item = size_of(e.out_type);
    for (int64_t i = 0; i < line.pixels; ++i)
      for (int64_t c = 0; c < kPanel; c += V::width)
        finish.whole(V::load_f32(values + i * kPanel + c), nullptr, line.y + (i * line.d.channels + c) * item);
  }

  // A panel of channels down the lines, `count` windows wide from window `first` on.
  template <int U, int Rows, int Quads>
  static void strip(const DepthwiseBlock& d, const DepthwiseShape& shape, const DepthwiseMemory& memory, int64_t c,
                    int64_t first, int64_t count) {
    const Epilogue& e = *d.epilogue;
    const auto finish = Finisher<V>::make(e);
    const bool plain = !e.residual && c + kPanel <= d.channels;
    const bool activated = e.activation != Function::identity;
    const auto run_line = plain && activated                  ? line_activated<U, Rows, Quads>
                          : plain && e.out_type == DType::s8    ? line_of<U, Rows, Quads, DType::s8>
                          : plain && e.out_type == DType::f32 ? line_of<U, Rows, Quads, DType::f32>
                                                              : line_of_any<U>;
    const int8_t* x = d.x + first * shape.step + c;
    for (int64_t i = 0; i < shape.ring; ++i) memory.held[i] = -1;
    for (int64_t l = 0, slot = 0; l < d.lines; ++l, slot = (slot + d.stride_h) % shape.ring) {
      for (int64_t i = 0; i < d.kh; ++i) {
        const int64_t row = l * d.stride_h + i * d.dilation_h, at = slot + i * d.dilation_h;
        const int64_t place = at < shape.ring ? at : at - shape.ring;
        int8_t* quads = memory.quads + place * shape.row_bytes;
        memory.rows[i] = quads;
        if (memory.held[place] != row) fill_row(d, shape, x + row * d.row_stride, count, quads);
        memory.held[place] = row;
      }
      const int64_t m = l * d.pixels + first * U;
      run_line({d, shape, memory, finish, c, d.m0 + m, d.pixels - first * U < count * U ? d.pixels - first * U : count * U, count,
                static_cast<char*>(d.y) + (l * d.y_row + first * U * d.channels + c) * size_of(e.out_type)});
    }
  }

  // Asks for what `prepare` reads of a panel.
  static void prefetch(const DepthwiseBlock& d, int64_t c) {
    const Epilogue& e = *d.epilogue;
    for (int64_t k = 0; k < d.kh * d.kw; k += 4) __builtin_prefetch(d.weight + c / kPanel * d.panel_bytes + k * kPanel);
    __builtin_prefetch(e.w_sum + c);
    __builtin_prefetch(e.w_scale + c);
    if (e.bias) __builtin_prefetch(e.bias + c);
  }

  template <int U, int Rows, int Quads>
  static void run(const DepthwiseBlock& d, const DepthwiseShape& shape, const DepthwiseMemory& memory) {
    for (int64_t c = 0; c < d.channels; c += kPanel) {
      prepare(d, shape, memory, c);
      if (c + kPanel < d.channels) prefetch(d, c + kPanel);
      for (int64_t first = 0, count; first < shape.windows; first += count) {
        count = shape.windows - first < DepthwiseShape::kChunk ? shape.windows - first : DepthwiseShape::kChunk;
        strip<U, Rows, Quads>(d, shape, memory, c, first, count);
      }
    }
  }
};

template <class V>
void depthwise(const DepthwiseBlock& d) {
  const DepthwiseShape shape(d);
  const DepthwiseMemory memory(shape, d.kh, d.memory);
  using K = Depthwise<V>;
  constexpr int known = V::width > 1;  // or the compiler takes long over a 5x5 kernel of one lane, which is no faster
  if (shape.pixels == 2 && d.kh == 3 && shape.quads == 1) K::template run<2, 3, 1>(d, shape, memory);
  else if (shape.pixels == 2 && d.kh == 5 && shape.quads == 2) K::template run<2, 5 * known, 2 * known>(d, shape, memory);
  else if (shape.pixels == 2) K::template run<2, 0, 0>(d, shape, memory);
  else if (d.kh == 3 && shape.quads == 1) K::template run<1, 3, 1>(d, shape, memory);
  else K::template run<1, 0, 0>(d, shape, memory);
}

}  // namespace
}  // namespace qk
