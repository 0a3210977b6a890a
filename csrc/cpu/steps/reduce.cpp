// A sum, mean or extreme over axes, whose sizes become 1.
#include "../reduce.h"
#include "operand.h"

namespace qk {
namespace {

#define QK_REDUCE(F)                                                                         \
  F(ReduceOp, op, ReduceOp::mean)                                                            \
  F(uint8_t, over_h, 0) F(uint8_t, over_w, 0) F(uint8_t, over_c, 0)                          \
  QK_X(F) QK_CLAMP(F) QK_OUTPUT(F)
QK_RECORD(Payload, QK_REDUCE);

const char* check(const StepCheck& c) {
  const Payload& p = c.payload<Payload>();
  if (const char* why = check_x_and_y(c, p)) return why;
  if (!within(int(p.op), 0, int(ReduceOp::min))) return "its operation is none that is known";
  if (!within(p.over_h, 0, 1) || !within(p.over_w, 0, 1) || !within(p.over_c, 0, 1)) return "a flag is neither 0 nor 1";
  return check_clamp(p);
}

std::string shape(const StepCall& call, ProgramShape& y) {
  const Payload& p = call.payload<Payload>();
  const ProgramShape& x = call.x_shape();
  if ((p.over_h ? double(x.h) : 1.0) * (p.over_w ? double(x.w) : 1.0) > kMaxReduced) return too_large(call);
  y = {x.n, p.over_h ? 1 : x.h, p.over_w ? 1 : x.w, p.over_c ? 1 : x.c};
  return fitting(call, y);
}

ReduceProblem problem(const StepCall& call) {
  const Payload& s = call.payload<Payload>();
  const ProgramShape& x = call.x_shape();
  ReduceProblem p;
  p.outer = x.n * (s.over_h ? 1 : x.h) * (s.over_h || s.over_w ? 1 : x.w);
  p.count = (s.over_h ? x.h : 1) * (s.over_w ? x.w : 1);
  p.rows = s.over_h && !s.over_w ? x.w : 1;
  p.c = x.c, p.over_c = s.over_c, p.op = s.op;
  p.x = operand_of(call, 0, s.x_scale, s.x_zero);
  p.y = call.data(call.step.y);
  p.epilogue = clamped_output_of(call, s);
  return p;
}

int64_t plan(const StepCall& call, int threads, void*) { return reduce_workspace(problem(call), threads); }
void run(const StepCall& call, const void*, const Parallel& parallel, void* workspace) { reduce(problem(call), call.isa, parallel, workspace); }

}  // namespace

const StepType reduce_step{.name = "reduce", .payload = kPayload<Payload>,
                           .check = check, .shape = shape, .plan = plan, .run = run};

}  // namespace qk
