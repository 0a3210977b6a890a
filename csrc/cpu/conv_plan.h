// How a convolution is taken: the path, what of x is written as int8 before it, how the batch and the output are cut, and
// where everything lies in the workspace. It follows from sizes, types and strides, from what is given or known besides x (bias,
// winograd, weight_sum) and from QKERNELS_CONV_PATH. No value is looked at but, where Winograd pays and nobody knows whether it is
// exact, those of a weight.
#pragma once
#include <string>
#include <vector>

#include "gemm_plan.h"
#include "winograd_plan.h"

namespace qk {

enum class ConvPath : uint8_t {
  in_place,   // a GEMM over output pixels whose rows are read from the image where it lies
  packed,     // a GEMM over output pixels whose rows are gathered block by block
  depthwise,  // kernels/depthwise.h
  winograd,   // kernels/winograd.h
};
constexpr const char* kConvPathNames[] = {"in_place", "packed", "depthwise", "winograd"};

// Which paths a plan may take: those of least counted work, or one kind where it is possible, for tests and measurements.
enum class ConvWay : uint8_t { counted, direct, winograd };
constexpr const char* kConvWayNames[] = {"counted", "direct", "winograd", nullptr};
ConvWay asked_way();             // by QKERNELS_CONV_PATH; throws std::invalid_argument on an unknown name

// Some images that go through all steps together. Offsets are bytes of the workspace of one such run.
struct ConvPart {
  int64_t images = 0;            // 0: there is no such part
  int threads = 1;
  GemmPlan gemm;                 // in_place, packed
  WinogradPlan winograd;         // winograd
  int workers = 1;               // of the depthwise kernel
  int64_t strip = 0;             // its lines that are staged together before they become planes; 0: none
  int64_t scale = 0, zero = 0;   // dynamic: one an image
  int64_t image = 0;             // the int8 image, where it is written
  int64_t lines = 0;             // a line a worker before its channels are repeated
  int64_t panels = 0;            // depthwise: w_scale and bias to whole panels
  int64_t kernel = 0, kernel_bytes = 0;  // depthwise: what the kernel keeps, a worker
  int64_t staged = 0, staged_bytes = 0;  // depthwise: a strip, a worker
  int64_t rest = 0;              // what the GEMM or Winograd works in
  int64_t bytes = 0;
};

struct ConvPlan {
  const Kernels* kernels = nullptr;
  PackedLayout layout{1, 1, 1};
  ConvPath path = ConvPath::packed;

  // The int8 image that the path reads: x itself, or a copy with its border written out.
  bool writes_image = false;
  int8_t mask = 0;               // what its bytes are XORed with
  bool flip_written = false;     // from x's own mask to that, where it is written
  bool flip_gathered = false;    // from that to the matrix kernel's, where rows are gathered
  int64_t repeat = 1;            // depthwise with a multiplier: how often each channel of x is written
  int64_t row = 0, image = 0;    // bytes from one line, and one image, to the next
  bool slack = false;            // bytes behind the last pixel may be read
  int64_t read_on = 0;           // so many, by the path or whoever plans a padded x

  // K of a GEMM: pieces are whole kernel rows (`together`), or single taps.
  bool together = false;
  int64_t channels = 0;          // of one of the layout's groups
  int64_t piece = 0;             // bytes
  int64_t piece_columns = 0;     // pieces of a kernel row

  // The batch: `each` images for every worker alone, then the rest for all together; at most `at_once` at a time, so that
  // there is a part of that many, and one of what is left.
  int threads = 1;
  int64_t each = 0;
  ConvPart alone[2], shared[2];
  bool keeps_weight = false;     // winograd reads a weight that is kept, Conv2dProblem::winograd
  int64_t weight_bytes = 0;      // of the workspace's beginning: else it is made for this call
  int64_t bytes_each = 0, bytes = 0;  // of the workspace: of a worker alone; of the call

  bool depthwise() const { return path == ConvPath::depthwise; }
  bool winograd() const { return path == ConvPath::winograd; }
};

ConvPlan plan_conv2d(const Conv2dProblem& p, Isa isa, int threads, ConvWay way = asked_way());
std::string shown(const ConvPlan& plan);  // one line a fact

// What lies in the workspace of a part, in order.
struct Piece {
  const char* name;
  int64_t at, bytes;
};
std::vector<Piece> pieces_of(const Conv2dProblem& p, const ConvPlan& plan, const ConvPart& part);

}  // namespace qk
