// Convolution of an image that may lie anywhere, or with a border; a residual, a clamp and y's own border.
#include "../conv2d.h"

#include "../../core/padding.h"
#include "product.h"

namespace qk {
namespace {

#define QK_CONV2D(F)                                                                         \
  QK_PRODUCT(F) F(PadMode, pad_mode, PadMode::zeros) QK_WINDOW(F) F(int32_t, groups, 1)      \
  F(int32_t, pad_top, 0) F(int32_t, pad_bottom, 0) F(int32_t, pad_left, 0) F(int32_t, pad_right, 0)
QK_RECORD(Payload, QK_CONV2D);

const char* check(const StepCheck& c) {
  const Payload& p = c.payload<Payload>();
  if (c.x.rank != 4 || c.y.rank != 4 || c.x.channels < 1 || c.x.planar) return "it reads or writes no image";
  if (const char* why = check_window(p)) return why;
  if (p.pad_top < 0 || p.pad_bottom < 0 || p.pad_left < 0 || p.pad_right < 0 || !within(int(p.pad_mode), 0, 3)) return "its padding is negative or of no mode";
  if (c.y.channels < 1 || p.groups < 1 || c.x.channels % p.groups || c.y.channels % p.groups) return "its groups do not divide its channels";
  const int64_t each = c.x.channels / p.groups;
  if (each * p.kh > kMaxK || each * p.kh * p.kw > kMaxK) return "its K is above the limit";
  return check_product(c, p, weight_layout(c.y.channels, each, p.kh, p.kw, p.groups));
}

std::string shape(const StepCall& call, ProgramShape& y) {
  const Payload& p = call.payload<Payload>();
  const ProgramShape& x = call.x_shape();
  const int64_t h = x.h + p.pad_top + p.pad_bottom, w = x.w + p.pad_left + p.pad_right;
  if (std::string why = check_extent(p, h, w); !why.empty()) return why;
  if (!fits(p.pad_mode, std::max(p.pad_top, p.pad_bottom), x.h) || !fits(p.pad_mode, std::max(p.pad_left, p.pad_right), x.w))
    return sentence("its padding does not fit an image of ", x.h, "x", x.w);
  y.h = (h - int64_t(p.dilation_h) * (p.kh - 1) - 1) / p.stride_h + 1;
  y.w = (w - int64_t(p.dilation_w) * (p.kw - 1) - 1) / p.stride_w + 1;
  return double(x.n) * double(h) * double(w) * double(std::max(x.c, y.c)) > kMaxElements ? too_large(call) : residual_shape(call, y);
}

// Whether x holds what this step's padding asks for; behind it lies the rest of the arena.
bool has_padding(const ProgramValue& x, const Payload& p) {
  return x.slot >= 0 && x.type == DType::s8 && p.pad_mode == PadMode::zeros &&
         x.border >= std::max({p.pad_top, p.pad_bottom, p.pad_left, p.pad_right});
}

// What of a problem follows from the program alone.
Conv2dProblem geometry(const Program& program, const ProgramStep& step) {
  const Payload& s = payload_of<Payload>(program, step);
  Conv2dProblem p;
  p.c = program.values[step.reads[0]].channels, p.oc = program.values[step.y].channels;
  p.kh = s.kh, p.kw = s.kw, p.groups = s.groups;
  p.stride_h = s.stride_h, p.stride_w = s.stride_w, p.dilation_h = s.dilation_h, p.dilation_w = s.dilation_w;
  p.pad_top = s.pad_top, p.pad_bottom = s.pad_bottom, p.pad_left = s.pad_left, p.pad_right = s.pad_right;
  p.pad_mode = s.pad_mode;
  return p;
}

Conv2dProblem problem(const StepCall& call) {
  const Payload& s = call.payload<Payload>();
  const ProgramShape& x = call.x_shape();
  Conv2dProblem p = geometry(call.program, call.step);
  p.batch = x.n, p.h = x.h, p.w = x.w, p.c = x.c;
  p.x = call.data(call.read(0));
  p.x_type = call.x().type;
  p.x_mask = call.mask_of(call.x());
  call.strides(call.read(0), p.x_strides);
  p.x_padded = has_padding(call.x(), s);
  p.range = s.range;
  p.weight = call.constant<int8_t>(s.weight);
  if (KeptPlace* place = call.kept()) {
    p.weight_sum = place->load(&KeptPlace::weight_sum);
    if (call.program.fills_kept || place->load(&KeptPlace::filled)) p.winograd = reinterpret_cast<const int16_t*>(call.program.kept + place->at);
  }
  p.y = call.data(call.step.y);
  p.y_nhwc = !call.y().planar;
  p.y_border = call.y().border;
  p.epilogue = product_epilogue(call, s, p.batch * p.oh() * p.ow());
  return p;
}

// Fills the step's place with the weight as this plan reads it, once and for all.
void keep_weight(const StepCall& call, KeptPlace& place, const Conv2dProblem& p, const ConvPlan& plan) {
  if (!plan.keeps_weight || place.load(&KeptPlace::filled)) return;
  transform_weight(p, plan, Parallel{}, reinterpret_cast<int16_t*>(call.program.kept + place.at));
  place.store(&KeptPlace::filled, 1);
}

int64_t plan(const StepCall& call, int threads, void* plan) {
  Conv2dProblem p = problem(call);
  KeptPlace* place = call.program.fills_kept ? call.kept() : nullptr;
  if (place && !p.weight_sum) {
    p.weight_sum = largest_weight_sum(p);
    place->store(&KeptPlace::weight_sum, p.weight_sum);
  }
  const ConvPlan& made = *new (plan) ConvPlan(plan_conv2d(p, call.isa, threads));
  if (place) keep_weight(call, *place, p, made);
  return std::max(made.bytes, made.read_on);
}

void run(const StepCall& call, const void* plan, const Parallel& parallel, void* workspace) {
  conv2d(problem(call), *static_cast<const ConvPlan*>(plan), parallel, workspace);
}

const char* way(const void* plan) { return kConvPathNames[int(static_cast<const ConvPlan*>(plan)->path)]; }

int64_t kept_room(const Program& program, const ProgramStep& step) {
  const Conv2dProblem p = geometry(program, step);
  return is_3x3_stride_1(p) ? winograd_weight(p, weight_layout(p.oc, p.c / p.groups, p.kh, p.kw, p.groups)).bytes() : 0;
}

double macs(const StepCall& call) {
  const Payload& p = call.payload<Payload>();
  const ProgramShape& y = call.y_shape();
  return double(y.h) * double(y.w) * double(y.c) * double(call.x_shape().c / p.groups) * p.kh * p.kw;
}

}  // namespace

const StepType conv2d_step{.name = "conv2d", .payload = kPayload<Payload>, .most_reads = 2, .strided = true, .writes_planes = true,
                           .check = check, .shape = shape, .plan_bytes = sizeof(ConvPlan), .plan = plan, .run = run, .way = way,
                           .kept_room = kept_room, .macs = macs};

}  // namespace qk
