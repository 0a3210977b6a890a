// What a micro-kernel is handed, and the table of them for one instruction set.
// A micro-kernel allocates nothing, throws nothing and calls nothing outside its file.
#pragma once
#include "../core/layout.h"
#include "../core/problem.h"
#include "../core/winograd.h"
#include "isa.h"
#include "../core/workspace.h"

namespace qk {

// A block of C: lines * rows by cols at (m0, n0). Rows of x are packed (one line, one piece), or read from an image
// in place: a line is a row of output pixels, and K lies in pieces, one a kernel row or a tap.
struct GemmBlock {
  const int8_t* a;            // x of the first row ^ Kernels::x_mask; readable up to a multiple of Kernels::piece_rows
  int64_t lda;                // bytes between rows
  int64_t lines, line_stride; // bytes between lines
  int64_t piece_rows, piece_row_stride, piece_columns, piece_column_stride;  // bytes
  int64_t k4;                 // of a piece: its K / 4, rounded up
  const int8_t* b;            // first panel, core/layout.h
  int64_t panel_bytes;
  int64_t rows, cols, m0, n0; // rows of a line
  const float* row_scale;     // [lines * rows]
  const int32_t* row_offset;  // [lines * rows], zero point - Kernels::x_mask
  bool one_scale;             // all rows have the first one's
  void* c;                    // element (m0, n0)
  int64_t c_stride;           // elements between rows
  int64_t c_gap, c_line, c_column;  // more of them after each c_line rows; m0 is row c_column of its line
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

// Lines of output pixels of one image, all channels.
struct DepthwiseBlock {
  const int8_t* x;            // first tap of the first pixel, channel 0; NHWC, padded
  int8_t x_mask;              // what x is XORed with
  int64_t column_stride, row_stride;  // bytes; DepthwiseShape::kReadOn behind the last tap is readable
  int64_t stride_h, stride_w, dilation_h, dilation_w;
  const int8_t* weight;       // packed, N = channels, K = taps
  int64_t panel_bytes;
  int64_t kh, kw, channels, lines, pixels, m0;
  float x_scale;
  int32_t x_zero;
  void* y;                    // [lines][pixels][channels]
  int64_t y_row;              // elements between lines
  const Epilogue* epilogue;   // w_scale, bias and w_sum readable up to a whole panel
  void* memory;               // DepthwiseMemory::bytes
};

// How a line is cut into windows, and what is kept of its input rows (kernels/depthwise.h).
struct DepthwiseShape {
  static constexpr int64_t kChunk = 64;  // windows taken down the lines together
  static constexpr int64_t kReadOn = 8;  // windows, and one more kernel row's width
  bool shared;                // neighbouring windows share columns: quads start at every second one
  int64_t pixels;             // of a window: 2 where stride is 1
  int64_t quads;              // of a window and kernel row
  int64_t windows;            // of a line
  int64_t step;               // bytes of x from one window to the next
  int64_t pitch;              // bytes between channels 4v and 4v + 4 of a row of quads
  int64_t next_quad;          // bytes from a window's quad to its next
  int64_t row_bytes, ring;    // bytes of a row of quads; rows kept

  explicit DepthwiseShape(const DepthwiseBlock& d) {
    shared = d.dilation_w == 1 && d.stride_w <= 2;
    pixels = shared && d.stride_w == 1 ? 2 : 1;
    quads = ceil_div(d.kw + pixels - 1, 4);
    windows = ceil_div(d.pixels, pixels);
    step = (shared ? 2 : d.stride_w) * d.column_stride;
    const int64_t count = round_up(windows < kChunk ? windows : kChunk, 4);
    pitch = (shared ? round_up(count + 2 * (quads - 1), 4) : count * quads) * 16;
    next_quad = (shared ? 2 : count) * 16;
    row_bytes = round_up(4 * pitch, 64);
    ring = (d.kh - 1) * d.dilation_h + 1;
  }
};

struct DepthwiseMemory {
  int32_t* weights;           // [kh][quads][pixels][64]
  int32_t* start;             // [64] of sums: minus the zero point's share
  float *scale, *bias;        // [64]
  int64_t* held;              // [ring], the input row in each slot
  const int8_t** rows;        // [kh], the rows of quads under a line
  int8_t* quads;              // [ring][row_bytes]
  int64_t bytes;

  DepthwiseMemory(const DepthwiseShape& s, int64_t kh, void* base) {
    Workspace w(base);
    weights = w.take<int32_t>(kh * s.quads * s.pixels * 64);
    start = w.take<int32_t>(64);
    scale = w.take<float>(64);
    bias = w.take<float>(64);
    held = w.take<int64_t>(s.ring);
    rows = w.take<const int8_t*>(kh);
    quads = w.take<int8_t>(s.ring * s.row_bytes + 64);
    bytes = w.used();
  }
};

// The places where a 4x4 tile of outputs is read and written (kernels/winograd.h).
struct WinogradTile {
  const int8_t* x;            // the first pixel of its window, the group's first channel
  int32_t rows, columns;      // of its 6x6 window that the image has; the last ones stand for what lies behind
  int64_t image, y, column;   // of its first output
};

// Tiles of x to V.
struct WinogradInput {
  const WinogradTile* tile;
  int64_t tiles;
  int64_t row, pixel;         // bytes of x from one to the next
  int64_t channels;           // read in whole vectors, at most kReadOn bytes
  int8_t mask;                // what x is XORed with
  int16_t* v;                 // [36][tiles][channels]
  int64_t v_point, v_tile;    // words from one to the next
  static constexpr int64_t kReadOn = 32;
};

// M[36][tiles][kColumns] of one or two panels of channels.
struct WinogradProducts {
  static constexpr int64_t kColumns = 32;
  const int16_t* v;
  int64_t v_point, v_tile;    // words
  const int16_t* u;           // of the first panel, core/winograd.h
  int64_t u_panel, u_point;   // words
  int64_t panels, pairs;      // pairs of channels
  int64_t tiles;
  int32_t* m;
  int64_t m_point;            // sums from one point to the next
};

// M of neighbouring tiles of one line of them to C.
struct WinogradOutput {
  static constexpr int64_t kTiles = 8;
  const int32_t* m;           // of the first tile
  int64_t m_point;
  int64_t tiles;              // at most kTiles
  int64_t lines, pixels;      // of C, that exist: at most 4, and 4 a tile
  int64_t line_rows;          // rows of C from one line to the next
  GemmBlock block;            // where the first pixel lies, columns, scales and epilogue; nothing of x and b
};

// What a worker keeps of a head of attention, and of the rows at hand (kernels/attention.h).
struct HeadMemory {
  static constexpr int64_t kPanel = 32;  // columns of a packed panel, and tokens packed together
  static constexpr int64_t kRows = 32;   // taken together, so that a panel in L1 serves them all
  int64_t score_step, sum_step;          // floats between rows
  float* keys;                // [tokens / kPanel][width][kPanel]
  float* values;              // [v_width / kPanel][tokens][kPanel]
  float* scores;              // [kRows][score_step]
  float* sums;                // [kRows][sum_step]
  float* floats;              // [kRows][width or v_width]: int8 rows as float32

  HeadMemory(const AttentionProblem& p, Workspace& w)
      : score_step(round_up(p.k_tokens, kPanel) + 16),  // rows a power of two apart would share few cache sets
        sum_step(round_up(p.v_width, kPanel)) {
    keys = w.take<float>(round_up(p.k_tokens, kPanel) * p.width);
    values = w.take<float>(sum_step * p.k_tokens);
    scores = w.take<float>(kRows * score_step);
    sums = w.take<float>(kRows * sum_step);
    floats = w.take<float>(kRows * (p.width > p.v_width ? p.width : p.v_width));
  }
};

// The same where products are int8 (kernels/attention_s8.h): keys, values and their sums as a packed weight holds them.
struct HeadBytes {
  static constexpr int64_t kRows = 64;   // taken together; their weights are as many again, in two bytes
  int64_t q_step, weight_step;           // bytes between rows
  int64_t score_step, sum_step, floats_step;  // floats
  int8_t* keys;               // [tokens / 16][width / 4][16][4]
  int8_t* values;             // [v_width / 16][tokens / 4][16][4]
  float *key_scale, *value_scale, *mean;  // [tokens], [v_width], [width], to whole panels
  int32_t *key_sum, *value_sum;
  int8_t* q;                  // [kRows][q_step]
  int8_t* weights;            // [2 * kRows][weight_step]
  float* scores;              // [kRows][score_step]
  float* sums;                // [2 * kRows][sum_step]
  float *floats, *turned;     // [16][floats_step], [floats_step][16]
  float* row_scale;           // [2 * kRows]
  int32_t* row_offset;        // [2 * kRows]

  int64_t key_bytes() const { return score_step * q_step; }
  int64_t value_bytes() const { return sum_step * weight_step; }

  HeadBytes(const AttentionProblem& p, Workspace& w) {
    q_step = round_up(p.width, 64), weight_step = round_up(p.k_tokens > 1 ? p.k_tokens : 1, 64);
    score_step = round_up(p.k_tokens, 2 * kPanel), sum_step = round_up(p.v_width, 2 * kPanel);
    floats_step = round_up(p.width > p.v_width ? p.width : p.v_width, kPanel);
    keys = w.take<int8_t>(key_bytes());
    values = w.take<int8_t>(value_bytes());
    key_scale = w.take<float>(score_step), value_scale = w.take<float>(sum_step), mean = w.take<float>(floats_step);
    key_sum = w.take<int32_t>(score_step), value_sum = w.take<int32_t>(sum_step);
    q = w.take<int8_t>(kRows * q_step);
    weights = w.take<int8_t>(2 * kRows * weight_step);
    scores = w.take<float>(kRows * score_step);
    sums = w.take<float>(2 * kRows * sum_step);
    floats = w.take<float>(kPanel * floats_step), turned = w.take<float>(kPanel * floats_step);
    row_scale = w.take<float>(2 * kRows), row_offset = w.take<int32_t>(2 * kRows);
  }
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

// Rows of y, one after the other: y[r][c] = a op b. Operands move by their steps from row to row, and by 0 or 1 from column
// to column.
struct BinaryRows {
  BinaryOp op;
  Operand a, b;
  int64_t a_row, b_row, a_step, b_step;  // elements
  int64_t rows, columns;
  void* y;
  const Epilogue* epilogue;
};

struct Extremes {
  float lo, hi;               // both include 0; NaN is ignored
};

struct Kernels {
  Isa isa;
  const char* gemm_name;
  int64_t mr;                 // rows of `gemm`'s largest tile
  int8_t x_mask;              // what x is XORed with: -128 where the kernel reads unsigned bytes, else 0
  int64_t piece, piece_rows;  // of x, that the kernel reads at a time: bytes of K and rows
  int64_t x_bytes;            // of the rows of a block: a part of L2 that leaves room for weights and C
  void (*gemm)(const GemmBlock&);
  int64_t (*peak)(int64_t rounds);  // runs `gemm`'s multiply instruction on registers alone; returns its operations
  void (*weight_only)(const WeightOnlyBlock&);
  void (*depthwise)(const DepthwiseBlock&);
  // A packed panel's `channels` at kernel rows `row` apart to U, whose points are `point` words apart.
  void (*winograd_weights)(const int8_t* panel, int64_t channels, int64_t row, int64_t point, int16_t* u);
  void (*winograd_input)(const WinogradInput&);
  void (*winograd_products)(const WinogradProducts&);
  void (*winograd_output)(const WinogradOutput&);
  void (*quantize)(const void* x, DType type, int64_t count, float inv_scale, int32_t zero, bool flip, int8_t* q);
  Extremes (*extremes)(const void* x, DType type, int64_t count);
  void (*to_f32)(const void* x, DType type, int64_t count, float* y);
  void (*dequantize)(const int8_t* q, int64_t count, float scale, int32_t zero, DType out_type, void* y);
  void (*gather)(const GatherRun&);
  void (*interleave)(const PlanesToPixels&);
  void (*deinterleave)(const PixelsToPlanes&);
  void (*pool)(const Pool2dProblem&, int64_t image, int64_t row);
  void (*lookup)(const int8_t* table, int64_t count, const int8_t* x, int8_t* y);  // table[256], by unsigned bytes
  void (*unary)(const UnaryProblem&, int64_t begin, int64_t end);  // elements
  void (*binary)(const BinaryRows&);
  void (*layer_norm)(const LayerNormProblem&, int64_t begin, int64_t end, float* memory);  // rows; [4 * c] where x is int8
  void (*group_norm)(const GroupNormProblem&, int64_t image, int64_t begin, int64_t end, float* memory);  // groups; [4 * c]
  void (*softmax)(const SoftmaxProblem&, int64_t begin, int64_t end, float* memory);  // rows; [c up to a multiple of 16]
  void (*reduce)(const ReduceProblem&, int64_t outer, int64_t begin, int64_t end, float* memory);  // columns; [2 * as many]
  void (*average)(const AveragePoolProblem&, int64_t image, int64_t row);
  void (*pack_head)(const AttentionProblem&, int64_t image, int64_t kv_head, const HeadMemory&);
  void (*attend)(const AttentionProblem&, int64_t image, int64_t head, int64_t begin, int64_t rows, const HeadMemory&);
  void (*pack_head_s8)(const AttentionProblem&, int64_t image, int64_t kv_head, const HeadBytes&);
  void (*queries_s8)(const AttentionProblem&, int64_t image, int64_t head, int64_t begin, int64_t rows, int8_t mask, const HeadBytes&);
  void (*weigh_s8)(const AttentionProblem&, int64_t begin, int64_t rows, int8_t mask, const HeadBytes&);
  void (*store_s8)(const AttentionProblem&, int64_t image, int64_t head, int64_t begin, int64_t rows, const HeadBytes&);
};

}  // namespace qk
