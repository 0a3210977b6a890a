// Group normalization: over the pixels of an image and the channels of a group. As many groups as channels: instance norm.
#include "norm.h"

namespace qk {
namespace {

#define QK_GROUP_NORM(F) F(Constant, bias, Constant()) F(int32_t, groups, 1) QK_NORM(F)  /* bias: f32, one a channel */
QK_RECORD(Payload, QK_GROUP_NORM);

const char* check(const StepCheck& c) {
  const Payload& p = c.payload<Payload>();
  if (const char* why = check_norm(c, p)) return why;
  if (p.groups < 1 || c.x.channels % p.groups) return "its groups do not divide its channels";
  return c.holds(p.bias, c.x.channels * int64_t(4)) ? nullptr : "its bias lies outside";
}

GroupNormProblem problem(const StepCall& call) {
  const Payload& s = call.payload<Payload>();
  const ProgramShape& x = call.x_shape();
  GroupNormProblem p;
  p.batch = x.n, p.h = x.h, p.w = x.w, p.c = x.c, p.groups = s.groups;
  p.x = operand_of(call, 0, s.x_scale, s.x_zero);
  p.weight = call.constant<float>(s.weight), p.bias = call.constant<float>(s.bias);
  p.epsilon = s.epsilon;
  p.y = call.data(call.step.y);
  p.epilogue = output_of(call, s);
  return p;
}

int64_t plan(const StepCall& call, int threads, void*) { return group_norm_workspace(problem(call), threads); }
void run(const StepCall& call, const void*, const Parallel& parallel, void* workspace) { group_norm(problem(call), call.isa, parallel, workspace); }

}  // namespace

const StepType group_norm_step{.name = "group_norm", .payload = kPayload<Payload>,
                               .check = check, .shape = same_sizes, .plan = plan, .run = run};

}  // namespace qk
