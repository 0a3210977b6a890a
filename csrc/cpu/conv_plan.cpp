#include "conv_plan.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <stdexcept>

#include "channels.h"
#include "dispatch.h"
#include "parallel.h"

namespace qk {
namespace {

constexpr int64_t kWorkPerImage = 1 << 19;       // multiply-adds of a worker's images, below which all share each
constexpr int64_t kImageBytes = 512 * 1024;      // of the int8 image at a time, so that the path finds it in L2
constexpr int64_t kStripBytes = 128 * 1024;      // of outputs staged in cache before they become planes

bool is_packed_nhwc(const Conv2dProblem& p) {
  return p.x_strides[1] == 1 && p.x_strides[3] == p.c && p.x_strides[2] == p.w * p.c && p.x_strides[0] == p.h * p.w * p.c;
}

bool has_border(const Conv2dProblem& p) { return p.pad_top | p.pad_bottom | p.pad_left | p.pad_right; }

// ---- the image and the path

// The image as it lies, or as it is written.
void plan_image(const Conv2dProblem& p, bool reads_on, ConvPlan& plan) {
  plan.repeat = plan.depthwise() ? p.oc / p.c : 1;
  const bool lies = p.x_padded ? plan.repeat == 1
                               : p.x_type == DType::s8 && !has_border(p) && is_packed_nhwc(p) && plan.repeat == 1 && !reads_on;
  plan.writes_image = !lies;
  plan.slack = plan.writes_image || p.x_padded;
  plan.row = plan.writes_image ? p.padded_w() * p.c * plan.repeat : p.x_strides[2];
  plan.image = plan.writes_image ? p.padded_h() * plan.row : p.x_strides[0];
}

// An image is read in place where the kernel's pieces allow it, and its bytes are turned as the kernel reads them or will be written so.
bool reads_in_place(const Conv2dProblem& p, const ConvPlan& plan) {
  const Kernels& k = *plan.kernels;
  const bool padded = plan.piece % k.piece != 0;  // a piece reads on into the next pixels, against weights of zero
  const bool pieces_fit = !padded || (k.piece == 4 && plan.together && plan.slack);
  const bool lines_fit = 5 * p.ow() >= 4 * round_up(p.ow(), k.piece_rows);
  const bool rows_fit = k.piece_rows == 1 || plan.slack;  // its last tile reads rows behind the image
  return pieces_fit && lines_fit && rows_fit && (p.x_mask == k.x_mask || plan.writes_image);
}

// Whether Winograd is asked for or pays, and the sums stay within what its are exact for; only where the number of channels
// does not say that are the weights looked at.
bool takes_winograd(const Conv2dProblem& p, const ConvPlan& plan, ConvWay way) {
  if (way == ConvWay::direct || !is_3x3_stride_1(p)) return false;
  if (way != ConvWay::winograd && !winograd_pays(p, plan.layout, plan.kernels->isa)) return false;
  const int64_t most = 127 * 9 * (p.c / p.groups);  // whatever the weights
  return winograd_is_exact(p.weight_sum ? p.weight_sum : most) || (!p.weight_sum && winograd_is_exact(largest_weight_sum(p)));
}

void plan_path(const Conv2dProblem& p, ConvPlan& plan, ConvWay way) {
  plan.together = plan.layout.groups == 1 && p.dilation_w == 1;
  plan.channels = p.c / plan.layout.groups;
  plan.piece = plan.together ? p.kw * plan.channels : plan.channels;
  plan.piece_columns = plan.together ? 1 : p.kw;
  if (is_depthwise(p.c / p.groups, p.groups)) plan.path = ConvPath::depthwise;
  else if (takes_winograd(p, plan, way)) plan.path = ConvPath::winograd;
  // The depthwise kernel reads on behind the last tap, Winograd behind a pixel's last vector.
  plan_image(p, plan.depthwise() || (plan.winograd() && plan.channels % WinogradInput::kReadOn), plan);
  const Kernels& k = *plan.kernels;
  if (plan.path == ConvPath::packed && reads_in_place(p, plan)) plan.path = ConvPath::in_place;
  plan.mask = !plan.writes_image ? p.x_mask : plan.depthwise() || plan.winograd() ? int8_t(0) : k.x_mask;
  plan.flip_written = plan.mask != p.x_mask;  // floats: x_mask is 0
  plan.flip_gathered = plan.mask != k.x_mask;
  const int64_t rows = (k.piece_rows - 1) * p.stride_w;
  const int64_t windows = DepthwiseShape::kReadOn * std::max<int64_t>(p.stride_w, 2) + (p.kw + 4) * p.dilation_w;
  plan.read_on = 64 + (plan.depthwise() ? windows * plan.repeat : rows) * p.c;
}

// ---- the kernel

// Cycles that a row of the GEMM takes, without what waits for memory (measured on Emerald Rapids, docs/kernels.md#amx).
struct RowCycles {
  double panel, tile, group;                  // 16 outputs; for each, 64 bytes of K on AMX, four on AVX512-VNNI
};
constexpr RowCycles kAmxCycles{9.3, 1, 0}, kVnniCycles{5, 0, 0.65};
constexpr double kGain = 0.9;                   // less is within what counting cannot tell
constexpr double kGathered = 13, kShort = 4;    // 64 bytes of a piece into a row of a; a short piece that is moved whole

double cycles_of_row(const Conv2dProblem& p, const ConvPlan& plan, const RowCycles& cycles) {
  const int64_t pieces = p.kh * plan.piece_columns;
  const double piece = plan.slack && plan.piece <= 32 ? kShort : double(ceil_div(plan.piece, 64)) * kGathered;
  const double gathered = plan.path == ConvPath::packed ? double(pieces) * piece : 0.0;
  const double tiles = double(plan.layout.k_padded() / 64), groups = double(ceil_div(plan.layout.k, 4));
  return gathered + double(plan.layout.n_padded() / kPanel) * (cycles.panel + tiles * cycles.tile + groups * cycles.group);
}

// A plan but for its batch. AMX's tiles are deep: where K is so small that filling them takes longer than AVX512-VNNI's
// products, its kernel, which reads the same bytes, takes the layer.
ConvPlan plan_kernel(const Conv2dProblem& p, Isa isa, ConvWay way) {
  ConvPlan plan;
  plan.kernels = &kernels_of(isa);
  plan.layout = weight_layout(p.oc, p.c / p.groups, p.kh, p.kw, p.groups);
  plan_path(p, plan, way);
  if (isa != Isa::amx || plan.path != ConvPath::packed) return plan;
  const ConvPlan other = plan_kernel(p, Isa::avx512vnni, ConvWay::direct);
  return cycles_of_row(p, other, kVnniCycles) < kGain * cycles_of_row(p, plan, kAmxCycles) ? other : plan;
}

// ---- the output and the workspace

GemmPlan plan_pixels(const Conv2dProblem& p, const ConvPlan& plan, int64_t images, int threads) {
  const int64_t pixels = p.oh() * p.ow(), item = size_of(p.epilogue.out_type), c_bytes = plan.layout.n * item;
  const int64_t parts = p.y_border ? images : 1;  // lines of y have one gap, images another
  const Kernels& k = *plan.kernels;
  RowParts rows{parts, images * pixels / parts, k.piece_rows, plan.layout.k_padded(), c_bytes};
  if (plan.path == ConvPath::in_place) {
    const int64_t line_bytes = std::min(p.stride_h, p.dilation_h * p.kh) * p.padded_w() * p.c, unit = std::max<int64_t>(p.ow(), 1);
    rows = {images, pixels, unit, ceil_div(line_bytes, unit), c_bytes};
  }
  return plan_gemm(rows, plan.layout, k, threads, p.epilogue, p.y_nhwc ? 0 : item);
}

void plan_depthwise(const Conv2dProblem& p, const ConvPlan& plan, Workspace& w, ConvPart& part) {
  const int64_t lines = part.images * p.oh(), line_bytes = p.ow() * p.oc * size_of(p.epilogue.out_type);
  const int workers = workers_for(lines * p.ow() * p.oc * p.kh * p.kw / 4, kElementsPerThread, part.threads);
  part.workers = std::min(workers, int(std::max<int64_t>(lines, 1)));
  part.strip = p.y_nhwc ? 0 : std::max<int64_t>(1, kStripBytes / std::max<int64_t>(1, line_bytes));
  part.panels = w.used();
  to_whole_panels(w, p.epilogue, plan.layout);
  DepthwiseBlock block{};
  block.column_stride = p.c * plan.repeat, block.stride_w = p.stride_w;
  block.dilation_h = p.dilation_h, block.dilation_w = p.dilation_w;
  block.kh = p.kh, block.kw = p.kw, block.pixels = p.ow();
  part.kernel_bytes = DepthwiseMemory(DepthwiseShape(block), p.kh, nullptr).bytes;
  part.kernel = w.place(part.workers * part.kernel_bytes);
  part.staged_bytes = round_up(part.strip * line_bytes, 64);
  part.staged = w.place(part.workers * part.staged_bytes);
}

void plan_part(const Conv2dProblem& p, const ConvPlan& plan, int64_t images, int threads, ConvPart& part) {
  part.images = images, part.threads = threads;
  Workspace w(nullptr);
  if (p.range != Range::given) {
    part.scale = w.place(images * int64_t(sizeof(float)));
    part.zero = w.place(images * int64_t(sizeof(int32_t)));
  }
  if (plan.writes_image) {
    part.image = w.place(images * plan.image + plan.read_on);
    if (plan.repeat > 1) part.lines = w.place(std::clamp(threads, 1, kMaxThreads) * round_up(p.w * p.c, 64));
  }
  if (plan.depthwise()) {
    plan_depthwise(p, plan, w, part);
  } else if (plan.winograd()) {
    part.winograd = plan_winograd(p, plan.layout, images, threads);
    part.rest = w.place(part.winograd.bytes);
  } else {
    part.gemm = plan_pixels(p, plan, images, threads);
    part.rest = w.place(part.gemm.bytes);
  }
  part.bytes = w.used();
}

// Images of a run: as many at a time as stay in L2, and what is left.
int64_t plan_run(const Conv2dProblem& p, const ConvPlan& plan, int64_t images, int threads, ConvPart* parts) {
  const int64_t fit = plan.writes_image ? std::max<int64_t>(kImageBytes / std::max<int64_t>(1, plan.image), 1) : images;
  const int64_t at_once = std::min(fit, images);
  if (at_once == 0) return 0;
  plan_part(p, plan, at_once, threads, parts[0]);
  if (images % at_once) plan_part(p, plan, images % at_once, threads, parts[1]);
  return std::max(parts[0].bytes, parts[1].bytes);
}

// Images for each worker alone, which needs no barrier between the steps and finds its image in its own L2.
int64_t images_each(const Conv2dProblem& p, int threads) {
  const int64_t work = p.batch * p.oh() * p.ow() * p.oc * p.kh * p.kw * (p.c / p.groups);
  return threads > 1 && threads <= kMaxThreads && work >= threads * kWorkPerImage ? p.batch / threads : 0;
}

}  // namespace

std::vector<Piece> pieces_of(const Conv2dProblem& p, const ConvPlan& plan, const ConvPart& part) {
  std::vector<Piece> pieces;
  if (p.range != Range::given) pieces = {{"scale", part.scale, part.images * 4}, {"zero", part.zero, part.images * 4}};
  if (plan.writes_image) pieces.push_back({"image", part.image, part.images * plan.image + plan.read_on});
  if (plan.repeat > 1) pieces.push_back({"lines", part.lines, part.threads * round_up(p.w * p.c, 64)});
  if (plan.depthwise()) {
    pieces.push_back({"panels", part.panels, part.kernel - part.panels});
    pieces.push_back({"kernel", part.kernel, part.workers * part.kernel_bytes});
    pieces.push_back({"staged", part.staged, part.workers * part.staged_bytes});
  } else if (plan.winograd()) {
    pieces.push_back({"panels", part.rest + part.winograd.panels, part.winograd.rows - part.winograd.panels});
    pieces.push_back({"rows", part.rest + part.winograd.rows, part.winograd.workers * part.winograd.rows_each});
  } else {
    pieces.push_back({"panels", part.rest + part.gemm.panels, part.gemm.rows - part.gemm.panels});
    pieces.push_back({"rows", part.rest + part.gemm.rows, part.gemm.workers * part.gemm.rows_each});
  }
  return pieces;
}

ConvWay asked_way() {
  static const ConvWay way = [] {
    const char* name = std::getenv("QKERNELS_CONV_PATH");
    if (!name || !*name) return ConvWay::counted;
    for (int i = 0; kConvWayNames[i]; ++i)
      if (std::strcmp(name, kConvWayNames[i]) == 0) return ConvWay(i);
    throw std::invalid_argument("QKERNELS_CONV_PATH='" + std::string(name) + "' is unknown; choose one of counted, direct, winograd");
  }();
  return way;
}

ConvPlan plan_conv2d(const Conv2dProblem& p, Isa isa, int threads, ConvWay way) {
  ConvPlan plan = plan_kernel(p, isa, way);
  plan.keeps_weight = plan.winograd() && p.winograd;
  if (plan.winograd() && !plan.keeps_weight) plan.weight_bytes = round_up(winograd_weight(p, plan.layout).bytes(), 64);
  plan.threads = threads;
  plan.each = images_each(p, threads);
  plan.bytes_each = plan_run(p, plan, plan.each, 1, plan.alone);
  const int64_t rest = plan_run(p, plan, p.batch - plan.each * threads, threads, plan.shared);
  plan.bytes = plan.weight_bytes + std::max(plan.each ? threads * plan.bytes_each : 0, rest);
  return plan;
}

static void show(std::ostream& text, const char* name, const ConvPlan& plan, const ConvPart& part) {
  if (part.images == 0) return;
  text << '\n' << name << ": " << part.images << " images at once on " << part.threads << " threads, " << part.bytes << " bytes";
  if (plan.depthwise()) text << ", " << part.workers << " workers";
  else if (plan.winograd())
    text << ", blocks of " << part.winograd.block_tiles << " of " << part.winograd.tiles << " tiles for " << part.winograd.workers << " workers";
  else text << ", blocks of " << part.gemm.block_rows << " x " << part.gemm.block_cols << " for " << part.gemm.workers << " workers";
}

std::string shown(const ConvPlan& plan) {
  std::ostringstream text;
  text << "path: " << kConvPathNames[int(plan.path)] << " (" << plan.kernels->gemm_name << ")";
  text << "\nimage: " << (plan.writes_image ? "written" : "as it lies") << ", mask " << int(plan.mask) << ", each channel " << plan.repeat
       << " times, lines of " << plan.row << " bytes, " << plan.read_on << " readable behind it";
  text << "\nweight: " << plan.layout.groups << " groups of N=" << plan.layout.n << ", K=" << plan.layout.k << ", "
       << (plan.together ? "kernel rows together" : "tap by tap");
  text << "\nbatch: " << plan.each << " images for each worker alone; workspace " << plan.bytes << " bytes, " << plan.weight_bytes << " of them a transformed weight";
  show(text, "alone", plan, plan.alone[0]), show(text, "alone, last", plan, plan.alone[1]);
  show(text, "shared", plan, plan.shared[0]), show(text, "shared, last", plan, plan.shared[1]);
  return text.str();
}

}  // namespace qk
