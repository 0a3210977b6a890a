#include "program.h"

#include <algorithm>
#include <chrono>

#include "steps/step.h"

namespace qk {

Program::Program(const void* bytes)
    : base(static_cast<const char*>(bytes)),
      header(reinterpret_cast<const ProgramHeader*>(base)),
      values(reinterpret_cast<const ProgramValue*>(header + 1)),
      steps(reinterpret_cast<const ProgramStep*>(base + sizeof(ProgramHeader) + round_up(header->values * int64_t(sizeof(ProgramValue)), 8))),
      inputs(reinterpret_cast<const int32_t*>(steps + header->steps)),
      outputs(inputs + header->inputs) {}

bool Program::is_input(int32_t v) const { return std::find(inputs, outputs, v) != outputs; }

namespace {

// Images [first, first + count) of the batch, as many at a time as the first part has. Returns why it stopped.
std::string run_images(const Program& program, const ProgramPlan& plan, const ProgramPart* parts, const ProgramInput* inputs, void* const* outputs,
                int64_t first, int64_t count, const Parallel& parallel, char* arena, double* seconds) {
  using Clock = std::chrono::steady_clock;
  const ProgramHeader& h = *program.header;
  std::vector<ProgramInput> x(inputs, inputs + h.inputs);
  std::vector<void*> y(size_t(h.outputs));
  for (int64_t done = 0, images; done < count; done += images) {
    images = std::min(parts[0].images, count - done);
    const ProgramPart& part = part_of(parts, images);
    for (int32_t i = 0; i < h.inputs; ++i) {
      const int64_t image = inputs[i].strides[0] * size_of(program.values[program.inputs[i]].type);
      x[size_t(i)].data = static_cast<const char*>(inputs[i].data) + (first + done) * image;
    }
    for (int32_t i = 0; i < h.outputs; ++i) {
      const int32_t v = program.outputs[i];
      const int64_t image = part.shapes[size_t(v)].count() / part.images * size_of(program.values[v].type);
      y[size_t(i)] = static_cast<char*>(outputs[i]) + (first + done) * image;
    }
    const char* step_plan = part.plans.get();
    for (int32_t i = 0; i < h.steps; ++i) {
      const auto start = seconds ? Clock::now() : Clock::time_point();
      const StepCall call{program, program.steps[i], part, x.data(), y.data(), arena, plan.isa, plan.mask, first + done};
      const StepType& type = type_of(call.step);
      if (std::string why = checks_computed(program, call.step) ? type.check_values(call) : std::string(); !why.empty())
        return sentence("step ", program.name(call.step), ": ", why);
      type.run(call, step_plan, parallel, arena + part.workspace);
      step_plan += type.plan_room();
      if (seconds) seconds[i] += std::chrono::duration<double>(Clock::now() - start).count();
    }
  }
  return {};
}

}  // namespace

std::string run_program(const Program& program, const ProgramPlan& plan, const ProgramInput* inputs, void* const* outputs,
                 const Parallel& parallel, void* arena, double* seconds) {
  char* memory = static_cast<char*>(arena);
  if (seconds) std::fill_n(seconds, program.header->steps, 0.0);
  if (plan.each) {
    std::vector<std::string> why(size_t(plan.threads));
    parallel(plan.threads, [&](int64_t i) {  // the first one's steps are what is timed
      why[size_t(i)] =
          run_images(program, plan, plan.alone, inputs, outputs, i * plan.each, plan.each, Parallel{}, memory + i * plan.bytes_each, i ? nullptr : seconds);
    });
    for (std::string& one : why)
      if (!one.empty()) return std::move(one);
  }
  const int64_t alone = plan.each * plan.threads;
  return run_images(program, plan, plan.shared, inputs, outputs, alone, plan.batch - alone, parallel, memory, seconds);
}

}  // namespace qk
