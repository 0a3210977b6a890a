#include "program.h"

#include <algorithm>
#include <chrono>

#include "../core/layout.h"
#include "../core/padding.h"
#include "conv2d.h"
#include "dispatch.h"
#include "gemm.h"
#include "move.h"
#include "pool.h"
#include "sentence.h"
#include "tokens.h"

namespace qk {

Program::Program(const void* bytes)
    : base(static_cast<const char*>(bytes)),
      header(reinterpret_cast<const ProgramHeader*>(base)),
      values(reinterpret_cast<const ProgramValue*>(header + 1)),
      steps(reinterpret_cast<const ProgramStep*>(base + sizeof(ProgramHeader) + round_up(header->values * int64_t(sizeof(ProgramValue)), 8))),
      inputs(reinterpret_cast<const int32_t*>(steps + header->steps)),
      outputs(inputs + header->inputs) {}

namespace {

// ---- one step as a problem

// Of a value with its border.
int64_t bytes_of(const ProgramValue& v, const ProgramShape& s) {
  return s.n * (s.h + 2 * v.border) * (s.w + 2 * v.border) * s.c * size_of(v.type);
}

// Bytes of a border before an image's first pixel.
int64_t inside(const ProgramValue& v, const ProgramShape& s) { return v.border * (s.w + 2 * v.border + 1) * s.c; }

// Where values lie during a call; null pointers while it is planned.
struct Memory {
  const Program& program;
  const ProgramPart& plan;
  const ProgramInput* inputs;
  void* const* outputs;
  char* arena;
  int8_t mask;  // of int8 values: as the matrix kernel reads them

  void* operator()(int32_t v) const {
    const ProgramValue& value = program.values[v];
    if (value.slot >= 0) return arena ? arena + plan.slots[size_t(value.slot)] + inside(value, plan.shapes[size_t(v)]) : nullptr;
    for (int32_t i = 0; i < program.header->inputs; ++i)
      if (program.inputs[i] == v) return const_cast<void*>(inputs[i].data);
    for (int32_t i = 0; outputs && i < program.header->outputs; ++i)
      if (program.outputs[i] == v) return outputs[i];
    return nullptr;
  }
  // Of an image, in order n, c, h, w.
  void strides(int32_t v, int64_t* s) const {
    for (int32_t i = 0; i < program.header->inputs; ++i)
      if (program.inputs[i] == v) {
        std::copy_n(inputs[i].strides, 4, s);
        return;
      }
    const ProgramShape& shape = plan.shapes[size_t(v)];
    const int64_t border = 2 * program.values[v].border;
    s[1] = 1, s[3] = shape.c, s[2] = (shape.w + border) * s[3], s[0] = (shape.h + border) * s[2];
  }
};

int8_t mask_of(Isa isa) { return kernels_of(isa).x_offset ? -128 : 0; }

Epilogue output_of(const Memory& at, const ProgramStep& s) {
  Epilogue e;
  e.out_type = at.program.values[s.y].type;
  e.out_inv_scale = s.out_inv_scale;
  e.out_zero = s.out_zero;
  e.out_mask = at.mask;
  return e;
}

Epilogue epilogue_of(const Memory& at, const ProgramStep& s, int64_t rows, int64_t channels) {
  Epilogue e = output_of(at, s);
  e.x_scale = &s.x_scale;
  e.x_zero = &s.x_zero;
  e.rows_per_scale = std::max<int64_t>(rows, 1);
  e.w_scale = reinterpret_cast<const float*>(at.program.base + s.w_scale);
  e.bias = s.bias ? reinterpret_cast<const float*>(at.program.base + s.bias) : nullptr;
  if (s.residual >= 0) {
    e.residual = at(s.residual);
    e.residual_type = at.program.values[s.residual].type;
    e.residual_mask = at.mask;
    e.residual_stride = channels;
    e.residual_scale = s.residual_scale;
    e.residual_zero = s.residual_zero;
  }
  e.lo = s.lo, e.hi = s.hi;
  return e;
}

// Whether x holds what its reader's padding asks for; behind it lies the rest of the arena.
bool has_padding(const ProgramValue& x, const ProgramStep& s) {
  return x.slot >= 0 && x.type == DType::s8 && PadMode(s.pad_mode) == PadMode::zeros &&
         x.border >= std::max({s.pad_top, s.pad_bottom, s.pad_left, s.pad_right});
}

Conv2dProblem conv2d_problem(const Memory& at, const ProgramStep& s) {
  const ProgramShape& x = at.plan.shapes[size_t(s.x)];
  Conv2dProblem p;
  p.batch = x.n, p.h = x.h, p.w = x.w, p.c = x.c;
  p.oc = s.oc, p.kh = s.kh, p.kw = s.kw, p.groups = s.groups;
  p.stride_h = s.stride_h, p.stride_w = s.stride_w, p.dilation_h = s.dilation_h, p.dilation_w = s.dilation_w;
  p.pad_top = s.pad_top, p.pad_bottom = s.pad_bottom, p.pad_left = s.pad_left, p.pad_right = s.pad_right;
  p.pad_mode = PadMode(s.pad_mode);
  p.x = at(s.x);
  p.x_type = at.program.values[s.x].type;
  p.x_mask = p.x_type == DType::s8 ? at.mask : 0;
  at.strides(s.x, p.x_strides);
  p.x_padded = has_padding(at.program.values[s.x], s);
  p.range = Range(s.range);
  p.weight = reinterpret_cast<const int8_t*>(at.program.base + s.weight);
  p.y = at(s.y);
  p.y_nhwc = !at.program.values[s.y].planar;
  p.y_border = at.program.values[s.y].border;
  p.epilogue = epilogue_of(at, s, p.batch * p.oh() * p.ow(), s.oc);
  return p;
}

GemmProblem linear_problem(const Memory& at, const ProgramStep& s) {
  const ProgramShape& x = at.plan.shapes[size_t(s.x)];
  GemmProblem p;
  p.m = x.n * x.h * x.w, p.n = s.oc, p.k = s.kw;
  p.x = at(s.x);
  p.x_type = at.program.values[s.x].type;
  p.x_mask = p.x_type == DType::s8 ? at.mask : 0;
  p.x_stride = p.k;
  p.range = Range(s.range);
  p.weight = reinterpret_cast<const int8_t*>(at.program.base + s.weight);
  p.c = at(s.y);
  p.c_stride = p.n;
  p.epilogue = epilogue_of(at, s, p.m, s.oc);
  return p;
}

LayerNormProblem layer_norm_problem(const Memory& at, const ProgramStep& s) {
  const ProgramShape& x = at.plan.shapes[size_t(s.x)];
  LayerNormProblem p;
  p.rows = x.n * x.h * x.w, p.c = x.c;
  p.x = static_cast<const float*>(at(s.x));
  p.weight = reinterpret_cast<const float*>(at.program.base + s.weight);
  p.bias = reinterpret_cast<const float*>(at.program.base + s.bias);
  p.epsilon = s.parameter;
  p.y = at(s.y);
  p.epilogue = output_of(at, s);
  return p;
}

AttentionProblem attention_problem(const Memory& at, const ProgramStep& s) {
  const ProgramShape& x = at.plan.shapes[size_t(s.x)];
  AttentionProblem p;
  p.batch = x.n, p.tokens = x.h, p.heads = s.groups, p.width = x.c / 3 / s.groups;
  p.x = static_cast<const float*>(at(s.x));
  p.exponent = s.parameter;
  p.y = at(s.y);
  p.epilogue = output_of(at, s);
  return p;
}

// ---- sizes, from the inputs on

constexpr double kMaxElements = 0x1p48, kMaxWork = 0x1p60, kMaxBytes = 0x1p50;  // so that no sum overflows, whatever a file says

// The sizes of y, or why the step does not take x.
std::string shape_of(const Memory& at, const ProgramStep& s, ProgramShape& y) {
  const ProgramShape& x = at.plan.shapes[size_t(s.x)];
  const ProgramValue& value = at.program.values[s.y];
  y = {x.n, 1, 1, value.channels};
  if (s.kind == StepKind::linear) {
    if (x.c != s.kw) return sentence("it takes rows of ", s.kw, " features, but this image size gives ", x.c);
    y = {x.n, x.h, x.w, value.channels};
  } else if (s.kind == StepKind::attention) {
    y = {x.n, x.h, 1, value.channels};
    if (double(y.n) * double(y.h) * double(y.h) * double(y.c) > kMaxWork) return sentence("a sequence of ", x.h, " tokens is too large");
  } else if (s.kind == StepKind::conv2d || s.kind == StepKind::max_pool) {
    const int64_t h = x.h + s.pad_top + s.pad_bottom, w = x.w + s.pad_left + s.pad_right;
    const int64_t kh = int64_t(s.dilation_h) * (s.kh - 1) + 1, kw = int64_t(s.dilation_w) * (s.kw - 1) + 1;
    if (h < kh || w < kw) return sentence("its window, ", kh, "x", kw, ", is larger than the padded image, ", h, "x", w);
    const PadMode mode = s.kind == StepKind::conv2d ? PadMode(s.pad_mode) : PadMode::zeros;
    if (!fits(mode, std::max(s.pad_top, s.pad_bottom), x.h) || !fits(mode, std::max(s.pad_left, s.pad_right), x.w))
      return sentence("its padding does not fit an image of ", x.h, "x", x.w);
    const bool pool = s.kind == StepKind::max_pool;
    y.h = pool ? pooled(x.h, s.kh, s.stride_h, s.pad_top, s.dilation_h, s.ceil_mode) : (h - kh) / s.stride_h + 1;
    y.w = pool ? pooled(x.w, s.kw, s.stride_w, s.pad_left, s.dilation_w, s.ceil_mode) : (w - kw) / s.stride_w + 1;
    if (double(x.n) * double(h) * double(w) * double(std::max(x.c, y.c)) > kMaxElements) return sentence("an image of ", x.h, "x", x.w, " is too large");
  } else if (s.kind == StepKind::copy) {
    y.h = ceil_div(x.h, s.stride_h) + s.pad_top + s.pad_bottom;
    y.w = ceil_div(x.w, s.stride_w) + s.pad_left + s.pad_right;
  } else if (s.kind == StepKind::lookup || s.kind == StepKind::layer_norm) {
    y = x;
  } else if (s.kind == StepKind::planar) {
    y = value.rank == 2 ? ProgramShape{x.n, 1, 1, x.h * x.w * x.c} : x;
  }
  if (double(y.n) * double(y.h + 2 * value.border) * double(y.w + 2 * value.border) * double(y.c) > kMaxElements) return sentence("an image of ", x.h, "x", x.w, " is too large");
  const ProgramShape& before = at.plan.shapes[size_t(s.y)];
  if (before.c && (before.h != y.h || before.w != y.w || before.n != y.n))
    return sentence("what it joins is ", before.h, "x", before.w, " and ", y.h, "x", y.w);
  if (s.residual >= 0) {
    const ProgramShape& r = at.plan.shapes[size_t(s.residual)];
    if (value.rank == 3 && r.h != y.h) return sentence("it adds ", r.h, " tokens to ", y.h);
    if (r.n != y.n || r.h != y.h || r.w != y.w) return sentence("it adds an image of ", r.h, "x", r.w, " to one of ", y.h, "x", y.w);
  }
  return {};
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
  const char *before = value.rank == 3 ? "[N, T, " : "[N, ", *after = value.rank == 4 ? ", H, W]" : "]";
  if (input.rank != value.rank || size[1] != value.channels) return sentence(got.str(), before, value.channels, after, " is needed");
  if (size[2] < 1 || size[3] < 1) return sentence(got.str(), "only the batch may be empty");
  if (program.header->max_batch && size[0] > program.header->max_batch)
    return sentence(got.str(), "the program was made for batches of at most ", program.header->max_batch);
  if (size[0] != batch) return sentence(got.str(), "the first input has a batch of ", batch);
  return {};
}

constexpr int64_t kCacheBytes = 8 << 20;     // of values that images at a time may take
constexpr int64_t kWorkPerThread = 1 << 20;  // multiply-adds below which another thread costs more than it gives
constexpr int64_t kReadOn = 64;              // bytes behind a value, as kernels may

// Shapes of all values for `images` of the batch; empty where it is right, else why not.
std::string set_shapes(const Program& program, const ProgramInput* inputs, int64_t images, ProgramPart& part) {
  const ProgramHeader& h = *program.header;
  part.images = images;
  part.shapes.assign(size_t(h.values), {});
  for (int32_t i = 0; i < h.inputs; ++i) {
    const int64_t* size = inputs[i].sizes;
    part.shapes[size_t(program.inputs[i])] = {images, size[2], size[3], size[1]};
  }
  const Memory at{program, part, inputs, nullptr, nullptr, 0};
  double bytes = 0;
  for (const ProgramStep* s = program.steps; s != program.steps + h.steps; ++s) {
    ProgramShape y;
    const std::string why = shape_of(at, *s, y);
    if (!why.empty()) return sentence("step ", program.name(*s), ": ", why);
    part.shapes[size_t(s->y)] = y;
    bytes += double(bytes_of(program.values[s->y], y));
    if (bytes > kMaxBytes) return sentence("step ", program.name(*s), ": the values up to it have ", bytes, " bytes, too many");
  }
  return {};
}

void set_memory(const Program& program, const ProgramInput* inputs, Isa isa, int threads, ProgramPart& part) {
  const ProgramHeader& h = *program.header;
  part.threads = threads;
  part.slots.assign(size_t(h.slots), 0);
  const Memory at{program, part, inputs, nullptr, nullptr, mask_of(isa)};
  int64_t workspace = 0;  // and what steps may read behind their values
  for (const ProgramStep* s = program.steps; s != program.steps + h.steps; ++s) {
    const ProgramValue& value = program.values[s->y];
    if (value.slot >= 0) {
      int64_t& slot = part.slots[size_t(value.slot)];
      slot = std::max(slot, bytes_of(value, part.shapes[size_t(s->y)]));
    }
    if (s->kind == StepKind::conv2d) {
      const Conv2dProblem p = conv2d_problem(at, *s);
      workspace = std::max({workspace, conv2d_workspace(p, isa, threads), conv2d_read_on(p, isa)});
    }
    if (s->kind == StepKind::linear) workspace = std::max(workspace, gemm_workspace(linear_problem(at, *s), isa, threads));
    if (s->kind == StepKind::attention)
      workspace = std::max(workspace, attention_workspace(attention_problem(at, *s), threads));
  }
  for (int64_t& slot : part.slots) {
    const int64_t bytes = round_up(slot + kReadOn, 64);
    slot = part.workspace;
    part.workspace += bytes;
  }
  part.bytes = round_up(part.workspace + workspace, 64);
}

int64_t macs_of(const ProgramStep& s, const ProgramShape& x, const ProgramShape& y) {
  const int64_t values = y.n * y.h * y.w * y.c;
  if (s.kind == StepKind::conv2d) return values * (x.c / s.groups) * s.kh * s.kw;
  if (s.kind == StepKind::linear) return values * x.c;
  return s.kind == StepKind::attention ? 2 * values * x.h : 0;
}

// Of one image or sequence: what its values take, and its multiply-adds.
StepWork image_work(const Program& program, const ProgramPart& whole) {
  std::vector<int64_t> slots(size_t(program.header->slots), 0);
  StepWork work{0, 0};
  for (int32_t i = 0; i < program.header->steps; ++i) {
    const ProgramStep& s = program.steps[i];
    const ProgramShape &x = whole.shapes[size_t(s.x)], &y = whole.shapes[size_t(s.y)];
    const ProgramValue& value = program.values[s.y];
    if (value.slot >= 0) slots[size_t(value.slot)] = std::max(slots[size_t(value.slot)], bytes_of(value, y) / y.n);
    work.macs += macs_of(s, x, {1, y.h, y.w, y.c});
  }
  for (int64_t bytes : slots) work.bytes += bytes;
  return work;
}

}  // namespace

const ProgramPart& ProgramPlan::part(int64_t images, int of_threads) const {
  return *std::find_if(parts.begin(), parts.end(), [&](const ProgramPart& p) { return p.images == images && p.threads == of_threads; });
}

ProgramPlan plan_program(const Program& program, const ProgramInput* inputs, Isa isa, int threads) {
  ProgramPlan plan;
  plan.batch = inputs[0].sizes[0];
  plan.threads = threads;
  for (int32_t i = 0; i < program.header->inputs; ++i) {
    plan.error = check_input(program, i, inputs[i], plan.batch);
    if (!plan.error.empty()) return plan;
  }
  ProgramPart whole;
  plan.error = set_shapes(program, inputs, plan.batch, whole);
  plan.shapes = whole.shapes;
  if (!plan.error.empty() || plan.batch == 0) return plan;
  plan.at_once = plan.batch;
  if (inputs[0].rank != 2) {  // rows would read all weights once more
    const StepWork image = image_work(program, whole);
    plan.at_once = std::clamp<int64_t>(kCacheBytes / std::max<int64_t>(image.bytes, 1), 1, plan.batch);
    if (threads > 1 && plan.batch / threads * image.macs >= kWorkPerThread) plan.each = plan.batch / threads;
  }
  const auto add = [&](int64_t images, int of_threads) {
    for (int64_t n : {std::min(images, plan.at_once), images % plan.at_once}) {
      const bool known = std::any_of(plan.parts.begin(), plan.parts.end(), [&](const ProgramPart& p) { return p.images == n && p.threads == of_threads; });
      if (n == 0 || known) continue;
      ProgramPart part;
      set_shapes(program, inputs, n, part);
      set_memory(program, inputs, isa, of_threads, part);
      int64_t& bytes = of_threads == 1 && plan.each ? plan.bytes_each : plan.arena_bytes;
      bytes = std::max(bytes, part.bytes);
      plan.parts.push_back(std::move(part));
    }
  };
  add(plan.each, 1);
  add(plan.batch - plan.each * threads, threads);
  plan.arena_bytes = std::max(plan.arena_bytes, plan.each ? plan.bytes_each * threads : 0);
  return plan;
}

namespace {

void run_step(const Memory& at, const ProgramStep& s, Isa isa, const Parallel& parallel, void* workspace) {
  const ProgramShape &x = at.plan.shapes[size_t(s.x)], &y = at.plan.shapes[size_t(s.y)];
  const DType type = at.program.values[s.y].type;
  switch (s.kind) {
    case StepKind::conv2d: return conv2d(conv2d_problem(at, s), isa, parallel, workspace);
    case StepKind::linear: return gemm(linear_problem(at, s), isa, parallel, workspace);
    case StepKind::max_pool: {
      Pool2dProblem p;
      p.batch = x.n, p.h = x.h, p.w = x.w, p.c = x.c, p.oh = y.h, p.ow = y.w;
      p.kh = s.kh, p.kw = s.kw, p.stride_h = s.stride_h, p.stride_w = s.stride_w;
      p.pad_h = s.pad_top, p.pad_w = s.pad_left, p.dilation_h = s.dilation_h, p.dilation_w = s.dilation_w;
      p.type = type, p.mask = at.mask, p.x = at(s.x), p.y = at(s.y);
      return pool2d(p, isa, parallel);
    }
    case StepKind::mean: {
      MeanProblem p;
      p.batch = x.n, p.h = x.h, p.w = x.w, p.c = x.c;
      p.x = static_cast<const float*>(at(s.x)), p.y = static_cast<float*>(at(s.y));
      at.strides(s.x, p.x_strides);
      return mean(p, parallel);
    }
    case StepKind::copy: {
      CopyProblem p;
      p.batch = x.n, p.h = x.h, p.w = x.w, p.c = x.c, p.oh = y.h, p.ow = y.w, p.oc = y.c;
      p.stride_h = s.stride_h, p.stride_w = s.stride_w, p.channel = s.channel;
      p.pad_top = s.pad_top, p.pad_left = s.pad_left, p.pad_bottom = s.pad_bottom, p.pad_right = s.pad_right;
      p.fill = s.fill, p.fill_value = int8_t(s.x_zero) ^ at.mask, p.type = type, p.x = at(s.x), p.y = at(s.y);
      return copy(p, parallel);
    }
    case StepKind::lookup:
      return lookup({x.n * x.h * x.w * x.c, reinterpret_cast<const int8_t*>(at.program.base + s.weight), at.mask,
                     static_cast<const int8_t*>(at(s.x)), static_cast<int8_t*>(at(s.y))},
                    isa, parallel);
    case StepKind::layer_norm: return layer_norm(layer_norm_problem(at, s), isa, parallel);
    case StepKind::attention: return attention(attention_problem(at, s), isa, parallel, workspace);
    case StepKind::planar: return to_planar({x.n, x.h * x.w, x.c, type, at(s.x), at(s.y)}, parallel);
  }
}

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
    for (int32_t i = 0; i < h.inputs; ++i)
      x[size_t(i)].data = static_cast<const float*>(inputs[i].data) + (first + done) * inputs[i].strides[0];
    for (int32_t i = 0; i < h.outputs; ++i) {
      const ProgramShape& s = part.shapes[size_t(program.outputs[i])];
      y[size_t(i)] = static_cast<float*>(outputs[i]) + (first + done) * s.h * s.w * s.c;
    }
    const Memory at{program, part, x.data(), y.data(), arena, mask_of(isa)};
    for (int32_t i = 0; i < h.steps; ++i) {
      const auto start = seconds ? Clock::now() : Clock::time_point();
      run_step(at, program.steps[i], isa, parallel, arena + part.workspace);
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

StepWork work_of(const Program& program, const ProgramPlan& plan, const ProgramStep& s) {
  const auto bytes = [&](int32_t v) {
    const ProgramShape& shape = plan.shapes[size_t(v)];
    return shape.n * shape.h * shape.w * shape.c * size_of(program.values[v].type);
  };
  const ProgramShape &x = plan.shapes[size_t(s.x)], &y = plan.shapes[size_t(s.y)];
  StepWork work{0, bytes(s.x) + bytes(s.y)};
  if (s.residual >= 0) work.bytes += bytes(s.residual);
  work.macs = macs_of(s, x, y);
  if (s.kind == StepKind::layer_norm) work.bytes += 2 * s.weight_bytes;
  else if (s.weight_bytes) work.bytes += s.weight_bytes + int64_t(s.oc) * (s.bias ? 8 : 4);
  return work;
}

}  // namespace qk
