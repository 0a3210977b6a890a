// What a micro-kernel is handed, and the table of them for one instruction set.
// A micro-kernel allocates nothing, throws nothing and calls nothing outside its file.
#pragma once
#include "../core/layout.h"
#include "../core/problem.h"
#include "isa.h"

namespace qk {

// A block of C: lines * rows by cols at (m0, n0). Rows of x are packed (one line, one piece), or read from an image
// in place: a line is a row of output pixels, and K lies in pieces, one a kernel row or a tap.
struct GemmBlock {
  const int8_t* a;            // x of the first row, offset by Kernels::x_offset; packed rows are padded to the row tile
  int64_t lda;                // bytes between rows
  int64_t lines, line_stride; // bytes between lines
  int64_t piece_rows, piece_row_stride, piece_columns, piece_column_stride;  // bytes
  int64_t k4;                 // of a piece: its K / 4, rounded up
  const int8_t* b;            // first panel, core/layout.h
  int64_t panel_bytes;
  int64_t rows, cols, m0, n0; // rows of a line
  const float* row_scale;     // [lines * rows]
  const int32_t* row_offset;  // [lines * rows], zero point + Kernels::x_offset
  void* c;                    // element (m0, n0)
  int64_t c_stride;           // elements between rows
  const Epilogue* epilogue;   // w_scale and bias readable up to a whole panel
};

// The same with float rows; no activation scales.
struct WeightOnlyBlock {
  const float* a;             // [rows][lda], K padded to 4 with zeros
  int64_t lda;
  const int8_t* b;
  int64_t panel_bytes, k4;
  int64_t rows, cols, m0, n0;
  void* c;
  int64_t c_stride;
  const Epilogue* epilogue;
};

// `pixels` neighbours of one output row, all channels.
struct DepthwiseRow {
  const int8_t* x;            // first tap of the first pixel, channel 0; NHWC, padded
  int64_t column_stride;      // bytes between input columns
  int64_t pixel_columns;      // columns between output pixels (stride)
  int64_t tap_columns;        // columns between taps (dilation)
  int64_t tap_stride_h;       // bytes between tap rows
  const int8_t* weight;       // packed, N = channels, K = taps
  int64_t panel_bytes;
  int64_t kh, kw, channels, pixels, m0;
  float x_scale;
  int32_t x_zero;
  void* y;                    // [pixels][channels]
  const Epilogue* epilogue;
};

// Windows of `pixels` neighbouring output pixels to rows of K: rows x columns pieces of `piece` bytes each.
struct GatherRun {
  const int8_t* x;            // first piece of the first pixel
  int64_t pixel_stride, row_stride, column_stride;  // bytes
  int64_t pixels, rows, columns, piece;
  int64_t row_pitch;          // bytes of a row of pieces in `a`
  bool flip;                  // ^ 0x80
  bool slack;                 // 32 bytes behind the image may be read
  int8_t* a;
  int64_t lda;
};

// Float or int8 planes [channels][rows][columns] to int8 rows of pixels [rows][columns][channels].
struct PlanesToPixels {
  const void* x;
  DType x_type;
  int64_t plane_stride;       // elements; rows of a plane follow each other
  int64_t rows, columns, channels;
  float inv_scale;
  int32_t zero;
  bool flip;                  // ^ 0x80
  int8_t* out;
  int64_t row_stride;         // bytes between rows of pixels
};

// A block [pixels][channels] of outputs to planes.
struct PixelsToPlanes {
  const void* block;
  int64_t stride;             // elements between pixels
  int64_t item;               // bytes of an element
  int64_t pixels, channels;
  void* y;                    // first pixel of the first plane
  int64_t plane_stride;       // elements
};

struct Extremes {
  float lo, hi;               // both include 0; NaN is ignored
};

struct Kernels {
  Isa isa;
  const char* gemm_name;
  int64_t mr;                 // row tile of `gemm`: a is readable up to a multiple of it
  int32_t x_offset;           // 0, or 128 where x is stored as x ^ 0x80 (unsigned)
  int64_t piece, piece_rows;  // rows of x are read in place where K's pieces are a multiple of `piece` bytes, and
                              // lines fill multiples of `piece_rows`
  void (*gemm)(const GemmBlock&);
  void (*weight_only)(const WeightOnlyBlock&);
  void (*depthwise)(const DepthwiseRow&);
  void (*quantize)(const void* x, DType type, int64_t count, float inv_scale, int32_t zero, bool flip, int8_t* q);
  Extremes (*extremes)(const void* x, DType type, int64_t count);
  void (*to_f32)(const void* x, DType type, int64_t count, float* y);
  void (*dequantize)(const int8_t* q, int64_t count, float scale, int32_t zero, DType out_type, void* y);
  void (*gather)(const GatherRun&);
  void (*interleave)(const PlanesToPixels&);
  void (*deinterleave)(const PixelsToPlanes&);
  void (*pool)(const Pool2dProblem&, int64_t image, int64_t row);
};

}  // namespace qk
