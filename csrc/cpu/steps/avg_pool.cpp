// Means over windows of an image: of int8 at the same scale, by integers; else in float32.
#include "../reduce.h"
#include "operand.h"
#include "pool.h"

namespace qk {
namespace {

#define QK_AVG_POOL(F)                                                                       \
  QK_POOL(F)                                                                                 \
  F(uint8_t, count_include_pad, 1)  /* padding counts, as real 0 */                          \
  F(uint8_t, same_scale, 1)    /* x and y are int8 of one scale, and of x_zero */            \
  F(uint8_t, adaptive, 0)      /* 1: out_h x out_w windows that cover the image */           \
  F(int32_t, out_h, 1) F(int32_t, out_w, 1)                                                  \
  QK_X(F) QK_CLAMP(F) QK_OUTPUT(F)
QK_RECORD(Payload, QK_AVG_POOL);

Pool2dProblem window(const Payload& s) {
  Pool2dProblem p = window_of(s);
  p.average = true, p.count_include_pad = s.count_include_pad, p.x_zero = s.x_zero;
  return p;
}

const char* check(const StepCheck& c) {
  const Payload& p = c.payload<Payload>();
  if (const char* why = check_pool(c, window(p))) return why;
  if (const char* why = check_x_and_y(c, p)) return why;
  if (!within(p.same_scale, 0, 1) || !within(p.adaptive, 0, 1)) return "a flag is neither 0 nor 1";
  if (p.same_scale && (c.x.type != DType::s8 || c.y.type != DType::s8 || p.adaptive)) return "it keeps the scale of what is no int8, or of adaptive windows";
  if (p.adaptive && (p.out_h < 1 || p.out_w < 1)) return "its window is empty";
  if (int64_t(p.kh) * p.kw > kMaxReduced) return "its window has too many values";
  return check_clamp(p);
}

std::string shape(const StepCall& call, ProgramShape& y) {
  const Payload& s = call.payload<Payload>();
  const ProgramShape& x = call.x_shape();
  if (!s.adaptive) return pool_shape(call, window(s), s.ceil_mode, y);
  y.h = s.out_h, y.w = s.out_w;
  return double(x.h) * double(x.w) > kMaxReduced ? too_large(call) : std::string();
}

void run(const StepCall& call, const void*, const Parallel& parallel, void*) {
  const Payload& s = call.payload<Payload>();
  if (s.same_scale) return run_pool(call, window(s), parallel);
  const ProgramShape &x = call.x_shape(), &y = call.y_shape();
  AveragePoolProblem p;
  p.batch = x.n, p.h = x.h, p.w = x.w, p.c = x.c, p.oh = y.h, p.ow = y.w;
  p.adaptive = s.adaptive, p.count_include_pad = s.count_include_pad;
  p.kh = s.kh, p.kw = s.kw, p.stride_h = s.stride_h, p.stride_w = s.stride_w, p.pad_h = s.pad_h, p.pad_w = s.pad_w;
  p.x = operand_of(call, 0, s.x_scale, s.x_zero);
  p.y = call.data(call.step.y);
  p.epilogue = clamped_output_of(call, s);
  average_pool(p, call.isa, parallel);
}

}  // namespace

const StepType avg_pool_step{.name = "avg_pool", .payload = kPayload<Payload>,
                             .check = check, .shape = shape, .run = run};

}  // namespace qk
