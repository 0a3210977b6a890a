// Two values joined number by number, or a value and a constant; either may be repeated along any axis.
#include <utility>

#include "../elementwise.h"
#include "operand.h"

namespace qk {
namespace {

#define QK_BINARY(F)                                                                         \
  F(BinaryOp, op, BinaryOp::add)                                                             \
  F(uint8_t, reverse, 0)       /* 1: b op a */                                               \
  F(float, a_scale, 1.0f) F(int32_t, a_zero, 0) F(float, b_scale, 1.0f) F(int32_t, b_zero, 0) \
  F(Constant, data, Constant())  /* f32 [data_h, data_w, data_c]: b, where no second value is read */ \
  F(int32_t, data_h, 1) F(int32_t, data_w, 1) F(int32_t, data_c, 1)                          \
  QK_CLAMP(F) QK_OUTPUT(F)
QK_RECORD(Payload, QK_BINARY);

bool has_data(const ProgramStep& step) { return step.reads[1] < 0; }

const char* check_data(const StepCheck& c, const Payload& p) {
  if (p.data_h < 1 || p.data_w < 1 || p.data_c < 1 || double(p.data_h) * p.data_w * p.data_c > kMaxElements) return "its constant has no sizes";
  return c.holds(p.data, int64_t(p.data_h) * p.data_w * p.data_c * 4) ? nullptr : "its constant lies outside";
}

const char* check(const StepCheck& c) {
  const Payload& p = c.payload<Payload>();
  if (const char* why = check_operand(c, 0)) return why;
  if (const char* why = has_data(c.step) ? check_data(c, p) : check_operand(c, 1)) return why;
  if (c.y.planar) return "its output is planar";
  if (!within(int(p.op), 0, int(BinaryOp::min)) || !within(p.reverse, 0, 1)) return "its operation is none that is known";
  for (const char* why : {check_scale(p.a_scale, p.a_zero), check_scale(p.b_scale, p.b_zero), check_output(p)})
    if (why) return why;
  return check_clamp(p);
}

ProgramShape b_shape(const StepCall& call) {
  const Payload& p = call.payload<Payload>();
  return has_data(call.step) ? ProgramShape{1, p.data_h, p.data_w, p.data_c} : call.shape(call.read(1));
}

std::string shape(const StepCall& call, ProgramShape& y) {
  const ProgramShape a = call.x_shape(), b = b_shape(call);
  const auto meet = [](int64_t m, int64_t n) { return m == n || m == 1 || n == 1; };
  if (!meet(a.n, b.n) || !meet(a.h, b.h) || !meet(a.w, b.w) || !meet(a.c, b.c))
    return sentence("it joins ", a.n, "x", a.h, "x", a.w, "x", a.c, " and ", b.n, "x", b.h, "x", b.w, "x", b.c);
  const auto size = [](int64_t m, int64_t n) { return m == 1 ? n : m; };
  y = {size(a.n, b.n), size(a.h, b.h), size(a.w, b.w), size(a.c, b.c)};
  return fitting(call, y);
}

// Elements from one step along each axis of y to the next, in a value of sizes s.
void set_strides(const ProgramShape& s, int64_t (&strides)[4]) {
  const int64_t sizes[4] = {s.n, s.h, s.w, s.c};
  int64_t step = 1;
  for (int i = 3; i >= 0; step *= sizes[i], --i) strides[i] = sizes[i] == 1 ? 0 : step;
}

void run(const StepCall& call, const void*, const Parallel& parallel, void*) {
  const Payload& s = call.payload<Payload>();
  const ProgramShape& y = call.y_shape();
  BinaryProblem p;
  p.sizes[0] = y.n, p.sizes[1] = y.h, p.sizes[2] = y.w, p.sizes[3] = y.c;
  p.op = s.op;
  p.a = operand_of(call, 0, s.a_scale, s.a_zero);
  if (has_data(call.step)) p.b.data = call.constant<float>(s.data);
  else p.b = operand_of(call, 1, s.b_scale, s.b_zero);
  set_strides(call.x_shape(), p.a_strides);
  set_strides(b_shape(call), p.b_strides);
  if (s.reverse) std::swap(p.a, p.b), std::swap(p.a_strides, p.b_strides);
  p.y = call.data(call.step.y);
  p.epilogue = clamped_output_of(call, s);
  binary(p, call.isa, parallel);
}

}  // namespace

const StepType binary_step{.name = "binary", .payload = kPayload<Payload>, .most_reads = 2,
                           .check = check, .shape = shape, .run = run};

}  // namespace qk
