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

// ---- where values lie

void* StepCall::data(int32_t v) const {
  const ProgramValue& of = value(v);
  const ProgramShape& s = shape(v);
  if (of.slot >= 0) {
    const int64_t before = of.border * (s.w + 2 * of.border + 1) * s.c;  // bytes of the border before the first pixel
    return arena ? arena + part.slots[size_t(of.slot)] + before : nullptr;
  }
  for (int32_t i = 0; i < program.header->inputs; ++i)
    if (program.inputs[i] == v) return const_cast<void*>(inputs[i].data);
  for (int32_t i = 0; outputs && i < program.header->outputs; ++i)
    if (program.outputs[i] == v) return outputs[i];
  return nullptr;
}

void StepCall::strides(int32_t v, int64_t* s) const {
  for (int32_t i = 0; i < program.header->inputs; ++i)
    if (program.inputs[i] == v) {
      std::copy_n(inputs[i].strides, 4, s);
      return;
    }
  const ProgramShape& of = shape(v);
  const int64_t border = 2 * value(v).border;
  s[1] = 1, s[3] = of.c, s[2] = (of.w + border) * s[3], s[0] = (of.h + border) * s[2];
}

// ---- a call

namespace {

// Images [first, first + count) of the batch, some at a time.
void run_images(const Program& program, const ProgramPlan& plan, const ProgramInput* inputs, void* const* outputs, int64_t first,
                int64_t count, Isa isa, const Parallel& parallel, char* arena, double* seconds) {
  using Clock = std::chrono::steady_clock;
  const ProgramHeader& h = *program.header;
  std::vector<ProgramInput> x(inputs, inputs + h.inputs);
  std::vector<void*> y(size_t(h.outputs));
  for (int64_t done = 0, images; done < count; done += images) {
    images = std::min(plan.at_once, count - done);
    const ProgramPart& part = plan.part(images, parallel.threads);
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
      const StepCall call{program, program.steps[i], part, x.data(), y.data(), arena, isa, mask_of(isa)};
      const StepType& type = type_of(call.step);
      type.run(call, step_plan, parallel, arena + part.workspace);
      step_plan += type.plan_room();
      if (seconds) seconds[i] += std::chrono::duration<double>(Clock::now() - start).count();
    }
  }
}

}  // namespace

void run_program(const Program& program, const ProgramPlan& plan, const ProgramInput* inputs, void* const* outputs, Isa isa,
                 const Parallel& parallel, void* arena, double* seconds) {
  char* memory = static_cast<char*>(arena);
  if (seconds) std::fill_n(seconds, program.header->steps, 0.0);
  if (plan.each)
    parallel(plan.threads, [&](int64_t i) {  // the first one's steps are what is timed
      run_images(program, plan, inputs, outputs, i * plan.each, plan.each, isa, Parallel{}, memory + i * plan.bytes_each, i ? nullptr : seconds);
    });
  const int64_t together = plan.each * plan.threads;
  run_images(program, plan, inputs, outputs, together, plan.batch - together, isa, parallel, memory, seconds);
}

int64_t id_count(const Program& program, int32_t input) {
  int64_t count = INT64_MAX;
  for (int32_t i = 0; i < program.header->steps; ++i) {
    const ProgramStep& step = program.steps[i];
    const StepType& type = type_of(step);
    if (type.id_count && step.reads[0] == program.inputs[input]) count = std::min(count, type.id_count(program.base + step.payload));
  }
  return count;
}

std::string check_values(const Program& program, const ProgramPlan& plan, const ProgramInput* inputs) {
  ProgramPart whole;
  for (int32_t i = 0; i < program.header->steps && plan.batch; ++i) {
    const ProgramStep& step = program.steps[i];
    const StepType& type = type_of(step);
    if (!type.check_values) continue;
    if (whole.shapes.empty()) whole.shapes = plan.shapes, whole.images = plan.batch;
    const std::string why = type.check_values({program, step, whole, inputs, nullptr, nullptr, Isa::scalar, 0});
    if (!why.empty()) return sentence("step ", program.name(step), ": ", why);
  }
  return {};
}

StepWork work_of(const Program& program, const ProgramPlan& plan, const ProgramStep& s) {
  const auto bytes = [&](int32_t v) {
    return plan.shapes[size_t(v)].count() * size_of(program.values[v].type);
  };
  StepWork work{0, bytes(s.y)};
  for (int i = 0; i < StepReads::kMost && s.reads[i] >= 0; ++i) work.bytes += bytes(s.reads[i]);
  const StepType& type = type_of(s);
  for (const Field* f = type.payload.fields(); f->name; ++f)
    if (f->is_constant) work.bytes += reinterpret_cast<const Constant*>(program.base + s.payload + f->offset)->bytes;
  ProgramPart whole;
  whole.shapes = plan.shapes, whole.images = plan.batch;
  const StepCall call{program, s, whole, nullptr, nullptr, nullptr, Isa::scalar, 0};
  if (type.macs) work.macs = int64_t(double(call.y_shape().n) * type.macs(call));
  return work;
}

const char* way_of(const Program& program, const ProgramPlan& plan, int32_t step) {
  const StepType& type = type_of(program.steps[step]);
  if (!type.way || plan.parts.empty()) return "";
  const char* of_step = plan.parts[0].plans.get();
  for (int32_t i = 0; i < step; ++i) of_step += type_of(program.steps[i]).plan_room();
  return type.way(of_step);
}

}  // namespace qk
