// run_program: a whole chained model as one operator.
#include <vector>

#include <torch/csrc/stable/library.h>

#include "../cpu/program.h"
#include "checks.h"
#include "tensors.h"

namespace qk::program_ops {

static bool is_aligned(const Tensor& t, uintptr_t to) { return reinterpret_cast<uintptr_t>(t.const_data_ptr()) % to == 0; }

static Program program_of(const char* op, const Tensor& bytes) {
  check(bytes.is_cpu(), op, "program is on ", device(bytes), "; programs run on the CPU");
  check(bytes.scalar_type() == ScalarType::Byte && bytes.is_contiguous() && is_aligned(bytes, 8), op,
        "program must be contiguous uint8 bytes, aligned to 8");
  const std::string why = check_program(bytes.const_data_ptr(), bytes.numel());
  check(why.empty(), op, "program is none that may run: ", why);
  return Program(bytes.const_data_ptr());
}

// As the program reads them: `held` keeps what had to be copied.
static std::vector<ProgramInput> inputs_of(const char* op, const Program& program, const std::vector<Tensor>& given, std::vector<Tensor>& held) {
  check(given.size() == size_t(program.header->inputs), op, given.size(), " inputs were given; the program takes ", program.header->inputs);
  std::vector<ProgramInput> inputs;
  for (size_t i = 0; i < given.size(); ++i) {
    const ProgramValue& value = program.values[program.inputs[i]];
    Tensor x = given[i];
    check(x.is_cpu(), op, "input ", i, " is on ", device(x), "; programs run on the CPU");
    check(x.scalar_type() == ScalarType::Float && x.dim() == value.rank, op, "input ", i, " is ", name(x.scalar_type()), " ", shape(x),
          "; float32 of ", int(value.rank), " axes is needed");
    if (value.nhwc_only) x = torch::stable::contiguous(x, MemoryFormat::ChannelsLast);
    else x = value.rank == 4 ? readable(x) : as_contiguous(x);
    ProgramInput in = program_input(x.const_data_ptr(), int(value.rank));
    for (int axis = 0; axis < in.rank; ++axis) {
      const int to = axis_of(in.rank, axis);
      in.sizes[to] = x.size(axis), in.strides[to] = x.stride(axis);
    }
    if (value.nhwc_only) {  // axes of size 1 may have any stride
      in.strides[1] = 1, in.strides[3] = x.size(1), in.strides[2] = x.size(1) * x.size(3), in.strides[0] = in.strides[2] * x.size(2);
    }
    inputs.push_back(in);
    held.push_back(x);
  }
  return inputs;
}

static Tensor output_of(const Program& program, const ProgramPlan& plan, int32_t v, const Tensor& x) {
  const ProgramShape& s = plan.shapes[size_t(v)];
  const ProgramValue& value = program.values[v];
  if (value.rank == 2) return empty_cpu(x, {s.n, s.c}, ScalarType::Float);
  if (value.rank == 3) return empty_cpu(x, {s.n, s.h, s.c}, ScalarType::Float);
  return empty_cpu(x, {s.n, s.c, s.h, s.w}, ScalarType::Float, value.planar ? MemoryFormat::Contiguous : MemoryFormat::ChannelsLast);
}

// `arena` is uint8 memory for this call alone.
static std::vector<Tensor> run(Tensor bytes, Tensor arena, std::vector<Tensor> given, std::optional<Tensor> seconds) {
  const char* op = "run_program";
  const Program program = program_of(op, bytes);
  std::vector<Tensor> held, results;
  const std::vector<ProgramInput> inputs = inputs_of(op, program, given, held);
  const Parallel threads = torch_threads();
  const ProgramPlan plan = plan_program(program, inputs.data(), active_isa(), threads.threads);
  check(plan.error.empty(), op, plan.error);
  std::vector<void*> outputs;
  for (int32_t i = 0; i < program.header->outputs; ++i) {
    results.push_back(output_of(program, plan, program.outputs[i], held[0]));
    outputs.push_back(results.back().mutable_data_ptr());
  }
  check(arena.is_cpu() && arena.scalar_type() == ScalarType::Byte && arena.is_contiguous() && arena.numel() >= plan.arena_bytes &&
            is_aligned(arena, 64),
        op, "arena is ", name(arena.scalar_type()), " ", shape(arena), " on ", device(arena), "; contiguous uint8 [", plan.arena_bytes,
        "] on the CPU, aligned to 64, is needed");
  if (seconds)
    check(seconds->is_cpu() && seconds->scalar_type() == ScalarType::Double && seconds->is_contiguous() &&
              seconds->numel() == program.header->steps,
          op, "seconds must be contiguous float64 [", program.header->steps, "] on the CPU");
  run_program(program, plan, inputs.data(), outputs.data(), active_isa(), threads, arena.mutable_data_ptr(),
              seconds ? static_cast<double*>(seconds->mutable_data_ptr()) : nullptr);
  return results;
}

}  // namespace qk::program_ops

STABLE_TORCH_LIBRARY_IMPL(qkernels, CPU, m) { m.impl("run_program", TORCH_BOX(&qk::program_ops::run)); }
STABLE_TORCH_LIBRARY_IMPL(qkernels, CUDA, m) { m.impl("run_program", TORCH_BOX(&qk::program_ops::run)); }  // says that it is the CPU's
