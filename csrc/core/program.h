// A chained model as one run of bytes: what a saved file holds is what runs, wherever it lies in memory.
//
//   ProgramHeader, ProgramValue[values], ProgramStep[steps], int32 inputs[], int32 outputs[], names, constants, extra
//
// Offsets count bytes from the start, constants begin at multiples of 64, numbers are little-endian. Batch, height,
// width and tokens are those of the inputs of a call; everything else is fixed here. qkernels/program/format.py writes it.
#pragma once
#include "problem.h"

namespace qk {

constexpr uint32_t kProgramVersion = 2;
constexpr char kProgramMagic[9] = "qkprog\r\n";  // a transfer that changes line ends breaks it

struct ProgramHeader {
  char magic[8];
  uint32_t version;
  uint32_t layout;                      // kLayoutVersion of the packed weights
  int64_t bytes;                        // of the whole program
  uint32_t checksum;                    // CRC-32 of everything behind the header
  int32_t values, steps, inputs, outputs, slots;
  int64_t max_batch;                    // 0: any
  int64_t extra;                        // offset of JSON for people and servers, up to the end; 0: none
};
static_assert(sizeof(ProgramHeader) == 64);

// One tensor between steps: an image [n, h, w, c], tokens [n, t, c] or rows [n, c].
struct ProgramValue {
  int32_t slot;                         // of the arena; -1: an input or output, whose memory is the caller's
  int32_t channels;                     // 0: features of a flattened image, known at the call
  uint8_t rank;                         // 4, 3 or 2
  DType type;                           // s8 or f32
  uint8_t planar;                       // [n, c, h, w] instead; an output only
  uint8_t nhwc_only;                    // an input that must come as [n, h, w, c]
  int32_t border;                       // pixels of zero point on every side of an s8 image, written with it
};
static_assert(sizeof(ProgramValue) == 16);

enum class StepKind : int32_t {
  conv2d,    // Conv2dProblem
  linear,    // GemmProblem
  max_pool,  // windows clipped to the image; s8 or f32
  mean,      // of an image's pixels: f32 [n, 1, 1, c]
  copy,      // every stride-th pixel of x, with a border and at a channel of y
  planar,    // [n, h, w, c] to [n, c, h, w], or to rows [n, c*h*w]
  lookup,    // any function of s8 to s8; `weight` is its table of 256
  layer_norm,  // LayerNormProblem: of f32 tokens or rows; `weight` and `bias` are f32
  attention,   // AttentionProblem: f32 [n, t, 3c] to [n, t, c]
};
constexpr int32_t kStepKinds = 9;

struct ProgramStep {
  StepKind kind;
  int32_t x, residual, y;               // values; residual -1: none
  int32_t name, name_bytes;             // offset in the program, length
  int32_t oc, kh, kw, groups, stride_h, stride_w, dilation_h, dilation_w;
  int32_t pad_top, pad_bottom, pad_left, pad_right, pad_mode;
  int32_t ceil_mode;                    // max_pool
  int32_t channel;                      // copy: of y, where x goes
  int32_t fill;                         // copy: 1 writes what x does not cover
  int32_t range;                        // Range of x
  float x_scale;
  int32_t x_zero;                       // and what copy fills with
  float residual_scale;
  int32_t residual_zero;
  float lo, hi, out_inv_scale;
  int32_t out_zero;
  float parameter;                      // layer_norm: epsilon; attention, whose heads are `groups`: log2(e) times its scale
  int64_t weight, weight_bytes, w_scale, bias;  // offsets in the program; bias 0: none
};
static_assert(sizeof(ProgramStep) == 160);

}  // namespace qk
