// A linear layer over the last axis of a value, with a residual and a clamp.
#include "../gemm.h"

#include "product.h"

namespace qk {
namespace {

#define QK_LINEAR(F) QK_PRODUCT(F) F(int32_t, k, 0)  /* values of a row of x */
QK_RECORD(Payload, QK_LINEAR);

const char* check(const StepCheck& c) {
  const Payload& p = c.payload<Payload>();
  if (c.y.rank != c.x.rank) return "it reads or writes no rows";
  if (c.y.channels < 1 || !within(p.k, 1, kMaxK) || (c.x.channels && c.x.channels != p.k)) return "its K is not that of its input";
  return check_product(c, p, {1, c.y.channels, p.k});
}

std::string shape(const StepCall& call, ProgramShape& y) {
  const ProgramShape& x = call.x_shape();
  const int32_t k = call.payload<Payload>().k;
  if (x.c != k) return sentence("it takes rows of ", k, " features, but this image size gives ", x.c);
  y = {x.n, x.h, x.w, y.c};
  return residual_shape(call, y);
}

GemmProblem problem(const StepCall& call) {
  const Payload& s = call.payload<Payload>();
  const ProgramShape& x = call.x_shape();
  GemmProblem p;
  p.m = x.n * x.h * x.w, p.n = call.y().channels, p.k = s.k;
  p.x = call.data(call.read(0));
  p.x_type = call.x().type;
  p.x_mask = call.mask_of(call.x());
  p.x_stride = p.k;
  p.range = s.range;
  p.weight = call.constant<int8_t>(s.weight);
  p.c = call.data(call.step.y);
  p.c_stride = p.n;
  p.epilogue = product_epilogue(call, s, p.m);
  return p;
}

int64_t plan(const StepCall& call, int threads, void* plan) { return (new (plan) GemmPlan(plan_linear(problem(call), call.isa, threads)))->bytes; }

void run(const StepCall& call, const void* plan, const Parallel& parallel, void* workspace) {
  gemm(problem(call), *static_cast<const GemmPlan*>(plan), parallel, workspace);
}

double macs(const StepCall& call) {
  const ProgramShape& y = call.y_shape();
  return double(y.h) * double(y.w) * double(y.c) * double(call.x_shape().c);
}

}  // namespace

const StepType linear_step{.name = "linear", .payload = kPayload<Payload>, .most_reads = 2,
                           .check = check, .shape = shape, .plan_bytes = sizeof(GemmPlan), .plan = plan, .run = run, .macs = macs};

}  // namespace qk
