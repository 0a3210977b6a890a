#include "program.h"

namespace qk {

Program checked_program(const Array& bytes) {
  check(bytes.on_cpu(), "program is on ", shown(bytes.place), "; programs run on the CPU");
  check(bytes.contiguous, "program must be contiguous bytes");
  check(reinterpret_cast<uintptr_t>(bytes.data) % 8 == 0, "program begins at an address that is not aligned to 8");
  const std::string why = check_program(bytes.data, bytes.count());
  check(why.empty(), "program is none that may run: ", why);
  return Program(bytes.data);
}

void check_input_count(const Program& program, size_t given) {
  check(given == size_t(program.header->inputs), given, " inputs were given; the program takes ", program.header->inputs);
}

Type input_type(const Program& program, int32_t i) {
  return program.values[program.inputs[i]].type == DType::s64 ? Type{Element::s64, "int64"} : Type();
}

void check_input(const Program& program, int32_t i, const Array& x) {
  check(x.on_cpu(), "input ", i, " is on ", shown(x.place), "; programs run on the CPU");
  const Type needed = input_type(program, i);
  check_type(x.type.element == needed.element, "input ", i, " has dtype ", x.type.name, "; ", needed.name, " is needed");
  check(x.axes >= 2 && x.axes <= 4, "input ", i, " has ", x.axes, " axes; [N, C, H, W], [N, T, C] or [N, C] is needed");
}

InputLies input_lies(const Program& program, int32_t i, const Array& x) {
  const ProgramValue& value = program.values[program.inputs[i]];
  if (x.axes != 4 || value.planar) return InputLies::contiguous;
  return value.nhwc_only ? InputLies::pixels : InputLies::anywhere;
}

bool lies(const Array& x, InputLies how) {
  return how == InputLies::anywhere || (how == InputLies::pixels ? lies_as_pixels(x) : x.contiguous);
}

ProgramInput input_of(const Program& program, int32_t i, const Array& x) {
  ProgramInput in = program_input(x.data, int(x.axes));
  for (int axis = 0; axis < in.rank; ++axis) {
    const int to = axis_of(in.rank, axis);
    in.sizes[to] = x.sizes[axis], in.strides[to] = x.strides[axis];
  }
  if (input_lies(program, i, x) == InputLies::pixels) {  // axes of size 1 may have any stride
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

std::vector<int64_t> sizes_of(const Program& program, const ProgramPlan& plan, int32_t v) {
  const ProgramShape& s = plan.whole.shapes[size_t(v)];
  const ProgramValue& value = program.values[v];
  if (value.rank == 2) return {s.n, s.c};
  if (value.rank == 3) return {s.n, s.h, s.c};
  return value.planar ? std::vector<int64_t>{s.n, s.c, s.h, s.w} : std::vector<int64_t>{s.n, s.h, s.w, s.c};
}

}  // namespace qk
