// Softmax of every row, or its logarithm.
#include "../norms.h"
#include "operand.h"

namespace qk {
namespace {

#define QK_SOFTMAX(F)                                                                        \
  F(uint8_t, log, 0)                                                                         \
  QK_X(F) QK_OUTPUT(F)
QK_RECORD(Payload, QK_SOFTMAX);

const char* check(const StepCheck& c) {
  const Payload& p = c.payload<Payload>();
  return within(p.log, 0, 1) ? check_x_and_y(c, p) : "its flag is neither 0 nor 1";
}

SoftmaxProblem problem(const StepCall& call) {
  const Payload& s = call.payload<Payload>();
  const ProgramShape& x = call.x_shape();
  SoftmaxProblem p;
  p.rows = x.n * x.h * x.w, p.c = x.c, p.log = s.log;
  p.x = operand_of(call, 0, s.x_scale, s.x_zero);
  p.y = call.data(call.step.y);
  p.epilogue = output_of(call, s);
  return p;
}

int64_t plan(const StepCall& call, int threads, void*) { return softmax_workspace(problem(call), threads); }
void run(const StepCall& call, const void*, const Parallel& parallel, void* workspace) { softmax(problem(call), call.isa, parallel, workspace); }

}  // namespace

const StepType softmax_step{.name = "softmax", .payload = kPayload<Payload>,
                            .check = check, .shape = same_sizes, .plan = plan, .run = run};

}  // namespace qk
