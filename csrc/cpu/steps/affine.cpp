// A factor and a summand a channel: a batch norm that stands before a layer.
#include "../elementwise.h"
#include "operand.h"

namespace qk {
namespace {

#define QK_AFFINE(F)                                                                         \
  F(Constant, weight, Constant()) F(Constant, bias, Constant())  /* f32, one a channel */    \
  QK_X(F) QK_CLAMP(F) QK_OUTPUT(F)
QK_RECORD(Payload, QK_AFFINE);

const char* check(const StepCheck& c) {
  const Payload& p = c.payload<Payload>();
  if (const char* why = check_x_and_y(c, p)) return why;
  if (c.x.channels < 1 || c.y.channels != c.x.channels) return "its output has other channels, or none that are known";
  if (!c.holds(p.weight, c.x.channels * int64_t(4))) return "its weight lies outside";
  return c.holds(p.bias, c.x.channels * int64_t(4)) ? check_clamp(p) : "its bias lies outside";
}

void run(const StepCall& call, const void*, const Parallel& parallel, void*) {
  const Payload& s = call.payload<Payload>();
  const ProgramShape& x = call.x_shape();
  AffineProblem p;
  p.rows = x.n * x.h * x.w, p.c = x.c;
  p.x = operand_of(call, 0, s.x_scale, s.x_zero);
  p.weight = call.constant<float>(s.weight), p.bias = call.constant<float>(s.bias);
  p.y = call.data(call.step.y);
  p.epilogue = clamped_output_of(call, s);
  affine(p, call.isa, parallel);
}

}  // namespace

const StepType affine_step{.name = "affine", .payload = kPayload<Payload>,
                           .check = check, .shape = same_sizes, .run = run};

}  // namespace qk
