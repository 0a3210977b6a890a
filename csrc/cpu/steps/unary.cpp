// A function of every number of a value; `identity` is a change of format, or a clamp.
#include "../elementwise.h"
#include "operand.h"

namespace qk {
namespace {

#define QK_UNARY(F)                                                                          \
  F(Function, function, Function::identity)                                                  \
  F(float, parameter, 1.0f)    /* silu's beta, elu's alpha, leaky_relu's slope */            \
  QK_X(F) QK_CLAMP(F) QK_OUTPUT(F)
QK_RECORD(Payload, QK_UNARY);

const char* check(const StepCheck& c) {
  const Payload& p = c.payload<Payload>();
  if (const char* why = check_x_and_y(c, p)) return why;
  if (!within(int(p.function), 0, kFunctions - 1)) return "its function is none that is known";
  return std::isfinite(p.parameter) ? check_clamp(p) : "its parameter is not finite";
}

void run(const StepCall& call, const void*, const Parallel& parallel, void*) {
  const Payload& s = call.payload<Payload>();
  const ProgramShape& x = call.x_shape();
  UnaryProblem p;
  p.count = x.n * x.h * x.w * x.c;
  p.function = s.function, p.parameter = s.parameter;
  p.x = operand_of(call, 0, s.x_scale, s.x_zero);
  p.y = call.data(call.step.y);
  p.epilogue = clamped_output_of(call, s);
  unary(p, call.isa, parallel);
}

}  // namespace

const StepType unary_step{.name = "unary", .payload = kPayload<Payload>,
                          .check = check, .shape = same_sizes, .run = run};

}  // namespace qk
