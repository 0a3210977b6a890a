// run_program: a whole chained model as one operator.
#include "../cpu/kept.h"
#include "../front/program.h"
#include "tensors.h"

namespace qk::program_ops {

static Tensor lying(const Tensor& x, Lies how) {
  if (how == Lies::well) return x.dim() == 4 ? readable(x) : x;
  return torch::stable::contiguous(x, how == Lies::pixels ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

static Tensor empty_output(const Program& program, const ProgramPlan& plan, int32_t v, const Tensor& x) {
  const ProgramShape& s = plan.whole.shapes[size_t(v)];
  const ProgramValue& value = program.values[v];
  if (value.rank != 4) return empty_cpu(x, sizes_of(program, plan, v), ScalarType::Float);
  return empty_cpu(x, {s.n, s.c, s.h, s.w}, ScalarType::Float, value.planar ? MemoryFormat::Contiguous : MemoryFormat::ChannelsLast);
}

static double* seconds_of(const std::optional<Tensor>& seconds, int64_t steps) {
  if (!seconds) return nullptr;
  check(seconds->is_cpu() && seconds->scalar_type() == ScalarType::Double && seconds->is_contiguous() && seconds->numel() == steps,
        "seconds must be contiguous float64 [", steps, "] on the CPU");
  return static_cast<double*>(seconds->mutable_data_ptr());
}

static void* arena_of(const Tensor& arena, int64_t bytes) {
  const Array a = view(arena);
  check(a.on_cpu() && arena.scalar_type() == ScalarType::Byte && a.contiguous && a.count() >= bytes && is_aligned(a.data),
        "arena is ", a.type.name, " ", shown(a), " on ", shown(a.place), "; contiguous uint8 [", bytes, "] on the CPU, aligned to ", kAlignment, ", is needed");
  return arena.mutable_data_ptr();
}

static char* kept_of(const Program& program, const std::optional<Tensor>& kept) {
  if (!kept) return nullptr;
  const Array a = view(*kept);
  check(a.on_cpu() && kept->scalar_type() == ScalarType::Byte && a.contiguous && is_aligned(a.data) &&
            holds_kept(program, a.data, a.count()),
        "kept is ", a.type.name, " ", shown(a), " on ", shown(a.place), "; it is not what this program keeps");
  return static_cast<char*>(const_cast<void*>(a.data));
}

// `arena` is uint8 memory for this call alone, `kept` what _core.Program keeps of the same bytes.
static std::vector<Tensor> run_program(Tensor bytes, Tensor arena, std::vector<Tensor> given, std::optional<Tensor> seconds,
                                       std::optional<Tensor> kept) {
  check_type(bytes.scalar_type() == ScalarType::Byte, "program is ", type_of(bytes.scalar_type()).name, "; it must be uint8");
  Program program = checked_program(view(bytes));
  program.kept = kept_of(program, kept);
  const std::vector<ProgramInput> inputs = checked_inputs(program, given.size(), [&](size_t i) { return view(given[i]); },
                                                          [&](size_t i, Lies how) { given[i] = lying(given[i], how); });
  const Parallel threads = torch_threads();
  const ProgramPlan plan = checked_plan(program, inputs.data(), active_isa(), threads.threads);
  check_input_values(program, plan, inputs.data());
  std::vector<Tensor> results;
  std::vector<void*> outputs;
  for (int32_t i = 0; i < program.header->outputs; ++i) {
    results.push_back(empty_output(program, plan, program.outputs[i], given[0]));
    outputs.push_back(results.back().mutable_data_ptr());
  }
  checked_run(program, plan, inputs.data(), outputs.data(), threads, arena_of(arena, plan.arena_bytes),
              seconds_of(seconds, program.header->steps));
  return results;
}

}  // namespace qk::program_ops

#define QK_RUN_PROGRAM TORCH_BOX((&qk::Operator<"run_program", &qk::program_ops::run_program>::call))
STABLE_TORCH_LIBRARY_IMPL(qkernels, CPU, m) { m.impl("run_program", QK_RUN_PROGRAM); }
STABLE_TORCH_LIBRARY_IMPL(qkernels, CUDA, m) { m.impl("run_program", QK_RUN_PROGRAM); }  // says that it is the CPU's
