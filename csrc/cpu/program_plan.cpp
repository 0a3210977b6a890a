// What follows from the sizes of a call's inputs: the sizes of every value, memory, and how the batch is cut; what a step of it
// costs, and whether the inputs' values may run.
#include <algorithm>

#include "dispatch.h"
#include "steps/step.h"

namespace qk {
namespace {

constexpr int64_t kCacheBytes = 8 << 20;     // of values that images at a time may take
constexpr int64_t kWorkPerThread = 1 << 20;  // multiply-adds below which another thread costs more than it gives
constexpr int64_t kReadOn = 64;              // bytes behind a value, as kernels may

// Bytes of a value with its border.
int64_t bytes_of(const ProgramValue& v, const ProgramShape& s) {
  return s.n * (s.h + 2 * v.border) * (s.w + 2 * v.border) * s.c * size_of(v.type);
}

// The sizes that an input may have: [N, 3, H, 224].
std::string shown_input(const ProgramValue& value) {
  const auto known = [](int32_t size, const char* free) { return size ? std::to_string(size) : std::string(free); };
  const std::string c = known(value.channels, "C");
  if (value.rank == 2) return sentence("[N, ", c, "]");
  if (value.rank == 3) return sentence("[N, ", known(value.fixed_h, "T"), ", ", c, "]");
  return sentence("[N, ", c, ", ", known(value.fixed_h, "H"), ", ", known(value.fixed_w, "W"), "]");
}

std::string check_input(const Program& program, int32_t i, const ProgramInput& input, int64_t batch) {
  const ProgramValue& value = program.values[program.inputs[i]];
  const int64_t* size = input.sizes;
  std::ostringstream got;
  got << "input " << i << " is [" << size[0] << ", ";
  if (input.rank == 3) got << size[2] << ", ";
  got << size[1];
  if (input.rank == 4) got << ", " << size[2] << ", " << size[3];
  got << "]; ";
  const auto differs = [](int32_t wanted, int64_t given) { return wanted && wanted != given; };
  if (input.rank != value.rank || differs(value.channels, size[1]) || differs(value.fixed_h, size[2]) || differs(value.fixed_w, size[3]))
    return sentence(got.str(), shown_input(value), " is needed");
  if (double(size[0]) * double(size[1]) * double(size[2]) * double(size[3]) > kMaxElements) return sentence(got.str(), "it is too large");
  if (size[1] < 1 || size[2] < 1 || size[3] < 1) return sentence(got.str(), "only the batch may be empty");
  if (program.header->max_batch && size[0] > program.header->max_batch)
    return sentence(got.str(), "the program was made for batches of at most ", program.header->max_batch);
  if (size[0] != batch) return sentence(got.str(), "the first input has a batch of ", batch);
  return {};
}

// A step whose sizes are asked for.
StepCall sized(const Program& program, const ProgramStep& step, const ProgramPart& part, const ProgramInput* inputs) {
  return {program, step, part, inputs, nullptr, nullptr, Isa::scalar, 0};
}

// The sizes of a step's y, or why it does not take x.
std::string set_shape(const StepCall& call, ProgramPart& part) {
  const StepType& type = type_of(call.step);
  const ProgramValue& value = call.y();
  for (int i = 0; i < type.most_reads && call.read(i) >= 0; ++i)
    if (!call.shape(call.read(i)).whole()) return "it reads a value that lacks a part";
  ProgramShape y{call.x_shape().n, 1, 1, value.channels};
  if (std::string why = type.shape(call, y); !why.empty()) return why;
  if (!type.joins) y.join_axis = -1;
  if (double(y.n) * double(y.h + 2 * value.border) * double(y.w + 2 * value.border) * double(y.c) > kMaxElements) return too_large(call);
  part.shapes[size_t(call.step.y)] = y;
  return type.macs && double(y.n) * type.macs(call) > kMaxWork ? too_large(call) : std::string();
}

// Shapes of all values for `images` of the batch; empty where it is right, else why not.
std::string set_shapes(const Program& program, const ProgramInput* inputs, int64_t images, ProgramPart& part) {
  const ProgramHeader& h = *program.header;
  part.images = images;
  part.shapes.assign(size_t(h.values), {});
  for (int32_t i = 0; i < h.inputs; ++i) {
    const int64_t* size = inputs[i].sizes;
    part.shapes[size_t(program.inputs[i])] = {images, size[2], size[3], size[1]};
  }
  double bytes = 0;
  for (const ProgramStep* s = program.steps; s != program.steps + h.steps; ++s) {
    const std::string why = set_shape(sized(program, *s, part, inputs), part);
    if (!why.empty()) return sentence("step ", program.name(*s), ": ", why);
    bytes += double(bytes_of(program.values[s->y], part.shapes[size_t(s->y)]));
    if (bytes > kMaxBytes) return sentence("step ", program.name(*s), ": the values up to it have ", bytes, " bytes, too many");
  }
  for (int32_t i = 0; i < h.outputs; ++i)
    if (!part.shapes[size_t(program.outputs[i])].whole()) return sentence("output ", i, " lacks a part");
  return {};
}

void set_memory(const Program& program, const ProgramPlan& plan, const ProgramInput* inputs, ProgramPart& part) {
  const ProgramHeader& h = *program.header;
  part.slots.assign(size_t(h.slots), 0);
  int64_t workspace = 0, room = 1;  // workspace: and what steps may read behind their values
  for (const ProgramStep* s = program.steps; s != program.steps + h.steps; ++s) room += type_of(*s).plan_room();
  part.plans.reset(new char[size_t(room)]);
  char* step_plan = part.plans.get();
  for (const ProgramStep* s = program.steps; s != program.steps + h.steps; ++s) {
    const ProgramValue& value = program.values[s->y];
    if (value.slot >= 0) {
      int64_t& slot = part.slots[size_t(value.slot)];
      slot = std::max(slot, bytes_of(value, part.shapes[size_t(s->y)]));
    }
    const StepType& type = type_of(*s);
    const StepCall call{program, *s, part, inputs, nullptr, nullptr, plan.isa, plan.mask};
    if (type.plan) workspace = std::max(workspace, type.plan(call, part.threads, step_plan));
    step_plan += type.plan_room();
  }
  for (int64_t& slot : part.slots) {
    const int64_t bytes = round_up(slot + kReadOn, 64);
    slot = part.workspace;
    part.workspace += bytes;
  }
  part.bytes = round_up(part.workspace + workspace, 64);
}

// What the values of one image or sequence take, and its multiply-adds.
struct ImageWork {
  int64_t bytes = 0;
  double macs = 0;
};

ImageWork image_work(const Program& program, const ProgramInput* inputs, const ProgramPart& whole) {
  std::vector<int64_t> slots(size_t(program.header->slots), 0);
  ImageWork work;
  for (int32_t i = 0; i < program.header->steps; ++i) {
    const ProgramStep& s = program.steps[i];
    const ProgramShape& y = whole.shapes[size_t(s.y)];
    const ProgramValue& value = program.values[s.y];
    if (value.slot >= 0) slots[size_t(value.slot)] = std::max(slots[size_t(value.slot)], bytes_of(value, y) / whole.images);
    if (const StepType& type = type_of(s); type.macs)
      work.macs += double(y.n / whole.images) * type.macs(sized(program, s, whole, inputs));
  }
  for (int64_t bytes : slots) work.bytes += bytes;
  return work;
}

void plan_part(const Program& program, const ProgramPlan& plan, const ProgramInput* inputs, int64_t images, int threads, ProgramPart& part) {
  part.threads = threads;
  set_shapes(program, inputs, images, part);
  set_memory(program, plan, inputs, part);
}

// A run of images: as many at a time as stay in cache, and what is left. Returns the memory that it takes.
int64_t plan_run(const Program& program, const ProgramPlan& plan, const ProgramInput* inputs, int64_t images, int64_t at_once, int threads,
                 ProgramPart* parts) {
  at_once = std::min(at_once, images);
  if (at_once == 0) return 0;
  plan_part(program, plan, inputs, at_once, threads, parts[0]);
  if (images % at_once) plan_part(program, plan, inputs, images % at_once, threads, parts[1]);
  return std::max(parts[0].bytes, parts[1].bytes);
}

}  // namespace

ProgramPlan plan_program(const Program& program, const ProgramInput* inputs, Isa isa, int threads) {
  ProgramPlan plan;
  plan.isa = isa, plan.mask = kernels_of(isa).x_mask;
  plan.threads = threads;
  plan.batch = inputs[0].sizes[0];
  for (int32_t i = 0; i < program.header->inputs; ++i) {
    plan.error = check_input(program, i, inputs[i], plan.batch);
    if (!plan.error.empty()) return plan;
  }
  plan.error = set_shapes(program, inputs, plan.batch, plan.whole);
  if (!plan.error.empty() || plan.batch == 0) return plan;
  plan.looks_at_values = std::any_of(program.steps, program.steps + program.header->steps, [](const ProgramStep& s) { return type_of(s).check_values != nullptr; });
  int64_t at_once = plan.batch;
  const auto is_row = [](const ProgramValue& v) { return v.rank == 2; };
  if (!std::all_of(program.values, program.values + program.header->values, is_row)) {  // rows alone would read all weights once more
    const ImageWork image = image_work(program, inputs, plan.whole);
    at_once = std::clamp<int64_t>(kCacheBytes / std::max<int64_t>(image.bytes, 1), 1, plan.batch);
    if (threads > 1 && double(plan.batch / threads) * image.macs >= double(kWorkPerThread)) plan.each = plan.batch / threads;
  }
  plan.bytes_each = plan_run(program, plan, inputs, plan.each, at_once, 1, plan.alone);
  const int64_t rest = plan_run(program, plan, inputs, plan.batch - plan.each * threads, at_once, threads, plan.shared);
  plan.arena_bytes = std::max(plan.bytes_each * threads, rest);
  return plan;
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
  for (int32_t i = 0; i < program.header->steps; ++i) {
    const ProgramStep& step = program.steps[i];
    const StepType& type = type_of(step);
    if (!type.check_values || checks_computed(program, step)) continue;
    const std::string why = type.check_values({program, step, plan.whole, inputs, nullptr, nullptr, plan.isa, plan.mask});
    if (!why.empty()) return sentence("step ", program.name(step), ": ", why);
  }
  return {};
}

StepWork work_of(const Program& program, const ProgramPlan& plan, const ProgramStep& s) {
  const auto bytes = [&](int32_t v) {
    return plan.whole.shapes[size_t(v)].count() * size_of(program.values[v].type);
  };
  StepWork work{0, bytes(s.y)};
  for (int i = 0; i < StepReads::kMost && s.reads[i] >= 0; ++i) work.bytes += bytes(s.reads[i]);
  const StepType& type = type_of(s);
  for (const Field* f = type.payload.fields(); f->name; ++f)
    if (f->is_constant) work.bytes += reinterpret_cast<const Constant*>(program.base + s.payload + f->offset)->bytes;
  const StepCall call{program, s, plan.whole, nullptr, nullptr, nullptr, plan.isa, plan.mask};
  if (type.macs) work.macs = int64_t(double(call.y_shape().n) * type.macs(call));
  return work;
}

const char* way_of(const Program& program, const ProgramPlan& plan, int32_t step) {
  const StepType& type = type_of(program.steps[step]);
  const ProgramPart& part = plan.each ? plan.alone[0] : plan.shared[0];
  if (!type.way || part.images == 0) return "";
  const char* of_step = part.plans.get();
  for (int32_t i = 0; i < step; ++i) of_step += type_of(program.steps[i]).plan_room();
  return type.way(of_step);
}

}  // namespace qk
