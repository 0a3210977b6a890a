#include "program.h"

#include "../core/layout.h"

namespace qk {

Program checked_program(const Array& bytes) {
  check(bytes.on_cpu(), "program is on ", shown(bytes.place), "; programs run on the CPU");
  check(bytes.contiguous, "program must be contiguous bytes");
  check(is_aligned(bytes.data), "program begins at an address that is not aligned to ", kAlignment);
  const std::string why = check_program(bytes.data, bytes.count());
  check(why.empty(), "program is none that may run: ", why);
  return Program(bytes.data);
}

Type input_type(const Program& program, int32_t i) {
  return program.values[program.inputs[i]].type == DType::s64 ? Type{Element::s64, "int64"} : Type();
}

Lies checked_input(const Program& program, int32_t i, const Array& x) {
  check(x.on_cpu(), "input ", i, " is on ", shown(x.place), "; programs run on the CPU");
  const Type needed = input_type(program, i);
  check_type(x.type.element == needed.element, "input ", i, " has dtype ", x.type.name, "; ", needed.name, " is needed");
  check(x.axes >= 2 && x.axes <= 4, "input ", i, " has ", x.axes, " axes; [N, C, H, W], [N, T, C] or [N, C] is needed");
  const ProgramValue& value = program.values[program.inputs[i]];
  if (x.axes != 4 || value.planar) return x.contiguous ? Lies::well : Lies::contiguous;
  return !value.nhwc_only || lies_as_pixels(x) ? Lies::well : Lies::pixels;
}

ProgramInput input_of(const Program& program, int32_t i, const Array& x) {
  ProgramInput in = program_input(x.data, int(x.axes));
  for (int axis = 0; axis < in.rank; ++axis) {
    const int to = axis_of(in.rank, axis);
    in.sizes[to] = x.sizes[axis], in.strides[to] = x.strides[axis];
  }
  const ProgramValue& value = program.values[program.inputs[i]];
  if (x.axes == 4 && !value.planar && value.nhwc_only) {  // axes of size 1 may have any stride
    in.strides[1] = 1, in.strides[3] = x.sizes[1], in.strides[2] = x.sizes[1] * x.sizes[3], in.strides[0] = in.strides[2] * x.sizes[2];
  }
  return in;
}

ProgramPlan checked_plan(const Program& program, const ProgramInput* inputs, Isa isa, int threads) {
  ProgramPlan plan = plan_program(program, inputs, isa, threads);
  check(plan.error.empty(), plan.error);
  return plan;
}

void check_input_values(const Program& program, const ProgramPlan& plan, const ProgramInput* inputs) {
  if (!plan.looks_at_values) return;
  const std::string why = check_values(program, plan, inputs);
  check(why.empty(), why);
}

void checked_run(const Program& program, const ProgramPlan& plan, const ProgramInput* inputs, void* const* outputs,
                 const Parallel& parallel, void* arena, double* seconds) {
  const std::string why = run_program(program, plan, inputs, outputs, parallel, arena, seconds);
  check(why.empty(), why);
}

std::shared_ptr<const ProgramPlan> PlanCache::get(const Program& program, const std::vector<ProgramInput>& inputs, Isa isa, int threads) {
  std::vector<int64_t> key{int64_t(isa), threads};
  for (const ProgramInput& in : inputs) key.insert(key.end(), in.sizes, in.sizes + 4), key.push_back(in.rank);
  std::lock_guard<std::mutex> lock(mutex_);
  if (const auto found = plans_.find(key); found != plans_.end()) return found->second;
  auto plan = std::make_shared<const ProgramPlan>(checked_plan(program, inputs.data(), isa, threads));
  if (plans_.size() >= kMost) plans_.clear();  // servers meet many image sizes
  return plans_[key] = plan;
}

std::vector<int64_t> sizes_of(const Program& program, const ProgramPlan& plan, int32_t v) {
  const ProgramShape& s = plan.whole.shapes[size_t(v)];
  const ProgramValue& value = program.values[v];
  if (value.rank == 2) return {s.n, s.c};
  if (value.rank == 3) return {s.n, s.h, s.c};
  return value.planar ? std::vector<int64_t>{s.n, s.c, s.h, s.w} : std::vector<int64_t>{s.n, s.h, s.w, s.c};
}

}  // namespace qk
