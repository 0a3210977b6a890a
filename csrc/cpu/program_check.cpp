#include <algorithm>
#include <cmath>
#include <cstring>

#include "../core/layout.h"
#include "../core/scale.h"
#include "program.h"
#include "sentence.h"

namespace qk {
namespace {

constexpr int32_t kMaxCount = 1 << 16;  // of values, steps, slots
constexpr int32_t kMaxBorder = 255;

bool within(int32_t v, int32_t lo, int32_t hi) { return v >= lo && v <= hi; }

std::string check_header(const void* bytes, int64_t size) {
  ProgramHeader h;
  if (size < int64_t(sizeof h)) return sentence("it has ", size, " bytes, fewer than the header of a program");
  std::memcpy(&h, bytes, sizeof h);
  if (std::memcmp(h.magic, kProgramMagic, sizeof h.magic) != 0) return "it does not begin as a program does";
  if (h.version > kProgramVersion)
    return sentence("it has format version ", h.version, ", newer than ", kProgramVersion, ", the newest this version reads: upgrade qkernels");
  if (h.version < kProgramVersion || h.layout != uint32_t(kLayoutVersion))
    return sentence("it has format version ", h.version, " with weight layout ", h.layout, "; this version runs ", kProgramVersion, " with ",
                    kLayoutVersion, ": compile the model again");
  if (h.bytes != size) return sentence("it has ", size, " bytes where its header says ", h.bytes, ": it is cut off or was appended to");
  if (!within(h.values, 1, kMaxCount) || !within(h.steps, 1, kMaxCount) || !within(h.inputs, 1, h.values) ||
      !within(h.outputs, 1, h.values) || !within(h.slots, 0, kMaxCount) || h.max_batch < 0)
    return "its counts of values or steps are out of range";
  const int64_t tables = int64_t(sizeof h) + round_up(h.values * int64_t(sizeof(ProgramValue)), 8) +
                         h.steps * int64_t(sizeof(ProgramStep)) + (h.inputs + h.outputs) * 4;
  if (tables > size) return "its tables reach beyond its end";
  return {};
}

struct Checker {
  const Program& program;
  std::vector<bool> known;  // values that exist before the step

  bool inside(int64_t at, int64_t bytes, int64_t align) const {
    return at > 0 && bytes >= 0 && at % align == 0 && bytes <= program.header->bytes && at <= program.header->bytes - bytes;
  }
  bool readable(int32_t v) const { return within(v, 0, program.header->values - 1) && known[size_t(v)]; }

  bool is_input(int32_t v) const { return std::find(program.inputs, program.outputs, v) != program.outputs; }
  bool lies_anywhere(int32_t v) const { return is_input(v) && program.values[v].rank == 4 && !program.values[v].nhwc_only; }

  const char* value(const ProgramValue& v) const {
    if (v.slot < -1 || v.slot >= program.header->slots) return "a value lies in no slot";
    if (v.rank < 2 || v.rank > 4 || v.channels < 0) return "a value has no sizes";
    if (v.type != DType::f32 && v.type != DType::s8) return "a value is neither float32 nor int8";
    if (!within(v.border, 0, v.slot >= 0 && v.type == DType::s8 && v.rank == 4 && !v.planar ? kMaxBorder : 0)) return "a value has a border that none may have";
    return nullptr;
  }

  const char* weights(const ProgramStep& s, const PackedLayout& layout) const {
    if (!inside(s.weight, s.weight_bytes, 64) || !layout.matches(reinterpret_cast<const int8_t*>(program.base + s.weight), s.weight_bytes))
      return "its weight is not packed as its sizes ask for";
    const int64_t bytes = s.oc * int64_t(4);
    if (!inside(s.w_scale, bytes, 64) || (s.bias && !inside(s.bias, bytes, 64))) return "its scales or bias lie outside";
    if (!are_scales(reinterpret_cast<const float*>(program.base + s.w_scale), s.oc)) return "a weight scale is not finite and above 0";
    return nullptr;
  }

  const char* epilogue(const ProgramStep& s, const ProgramValue& x, const ProgramValue& y) const {
    if (!within(s.range, 0, 2) || (x.type == DType::s8 && s.range != 0)) return "it has no range for its input";
    if (!is_scale(s.x_scale) || !is_scale(s.residual_scale) || !is_scale(s.out_inv_scale)) return "a scale is not finite and above 0";
    for (int32_t zero : {s.x_zero, s.residual_zero, s.out_zero})
      if (!within(zero, -128, 127)) return "a zero point is outside [-128, 127]";
    if (!(s.lo <= s.hi)) return "its clamp is empty";
    if (y.channels != s.oc || y.planar > (s.kind == StepKind::conv2d)) return "its output has other channels";
    return nullptr;
  }

  const char* window(const ProgramStep& s) const {
    if (s.kh < 1 || s.kw < 1 || s.stride_h < 1 || s.stride_w < 1 || s.dilation_h < 1 || s.dilation_w < 1) return "its window is empty";
    if (s.pad_top < 0 || s.pad_bottom < 0 || s.pad_left < 0 || s.pad_right < 0) return "its padding is negative";
    return nullptr;
  }

  const char* conv2d(const ProgramStep& s, const ProgramValue& x, const ProgramValue& y) const {
    if (x.rank != 4 || y.rank != 4 || x.channels < 1 || x.planar) return "it reads or writes no image";
    if (const char* why = window(s)) return why;
    if (s.oc < 1 || s.groups < 1 || x.channels % s.groups || s.oc % s.groups || !within(s.pad_mode, 0, 3)) return "its groups do not divide its channels";
    if (int64_t(x.channels) / s.groups * s.kh > kMaxK || int64_t(x.channels) / s.groups * s.kh * s.kw > kMaxK) return "its K is above the limit";
    if (const char* why = weights(s, weight_layout(s.oc, x.channels / s.groups, s.kh, s.kw, s.groups))) return why;
    return epilogue(s, x, y);
  }

  const char* linear(const ProgramStep& s, const ProgramValue& x, const ProgramValue& y) const {
    if (x.rank == 4 || y.rank != x.rank) return "it reads or writes no rows";
    if (s.oc < 1 || !within(s.kw, 1, kMaxK) || (x.channels && x.channels != s.kw)) return "its K is not that of its input";
    if (const char* why = weights(s, {1, s.oc, s.kw})) return why;
    return epilogue(s, x, y);
  }

  const char* lookup(const ProgramStep& s, const ProgramValue& x, const ProgramValue& y) const {
    if (x.type != DType::s8 || y.type != DType::s8) return "it looks up what is no int8";
    if (x.rank != y.rank || x.channels != y.channels || x.planar || y.planar) return "its output has other sizes";
    return s.weight_bytes == 256 && inside(s.weight, 256, 64) ? nullptr : "its table lies outside";
  }

  const char* mover(const ProgramStep& s, const ProgramValue& x, const ProgramValue& y) const {
    if (x.rank != 4 || x.channels < 1 || x.planar || x.type != y.type) return "it reads no image";
    if (s.kind == StepKind::planar)
      return (y.rank == 2 && y.channels == 0) || (y.rank == 4 && y.planar && y.channels == x.channels) ? nullptr : "its output is not planar";
    if (y.rank != 4 || y.planar) return "it writes no image";
    if (s.kind == StepKind::mean) return x.type == DType::f32 && y.channels == x.channels ? nullptr : "it averages no float image";
    if (const char* why = window(s)) return why;
    if (s.kind == StepKind::max_pool) {
      if (s.pad_top * int64_t(2) > s.kh || s.pad_left * int64_t(2) > s.kw || s.pad_bottom != s.pad_top || s.pad_right != s.pad_left) return "its padding is more than half of its window";
      return y.channels == x.channels ? nullptr : "its output has other channels";
    }
    if (!within(s.x_zero, -128, 127) || s.channel < 0 || int64_t(s.channel) + x.channels > y.channels) return "it copies beyond its output";
    return nullptr;
  }

  const char* output_scale(const ProgramStep& s) const {
    return is_scale(s.out_inv_scale) && within(s.out_zero, -128, 127) ? nullptr : "its output has no scale or zero point";
  }

  const char* layer_norm(const ProgramStep& s, const ProgramValue& x, const ProgramValue& y) const {
    if (x.type != DType::f32 || x.rank == 4 || x.channels < 1) return "it normalizes no float32 rows";
    if (y.rank != x.rank || y.channels != x.channels) return "its output has other sizes";
    const int64_t bytes = x.channels * int64_t(4);
    if (s.weight_bytes != bytes || !inside(s.weight, bytes, 64) || !inside(s.bias, bytes, 64)) return "its weight or bias lies outside";
    if (!(s.parameter >= 0.0f) || !std::isfinite(s.parameter)) return "its epsilon is not finite and at least 0";
    return output_scale(s);
  }

  const char* attention(const ProgramStep& s, const ProgramValue& x, const ProgramValue& y) const {
    if (x.type != DType::f32 || x.rank != 3 || y.rank != 3) return "it reads or writes no tokens";
    if (y.channels < 1 || x.channels != int64_t(3) * y.channels) return "its input is not three times as wide as its output";
    if (s.groups < 1 || y.channels % s.groups) return "its heads do not divide its channels";
    if (!(s.parameter > 0.0f) || !std::isfinite(s.parameter)) return "the factor of its scores is not finite and above 0";
    return output_scale(s);
  }

  // Why the step may not run; empty if it may.
  std::string step(const ProgramStep& s) {
    if (!within(int32_t(s.kind), 0, kStepKinds - 1) || !inside(s.name, s.name_bytes, 1)) return "it has no kind or name";
    if (!readable(s.x) || !within(s.y, 0, program.header->values - 1)) return "it reads a value that does not exist yet";
    const ProgramValue &x = program.values[s.x], &y = program.values[s.y];
    const bool again = s.kind == StepKind::copy && !s.fill;  // another part of the same output
    if (s.kind != StepKind::conv2d && (x.border || y.border)) return "it is no convolution, but a value of it has a border";
    if (is_input(s.y)) return "it writes an input";
    if (known[size_t(s.y)] != again) return "it writes a value that exists already, or a part of none";
    if (s.kind != StepKind::conv2d && lies_anywhere(s.x)) return "it reads an input whose pixels may lie anywhere";
    const char* why = s.kind == StepKind::conv2d       ? conv2d(s, x, y)
                      : s.kind == StepKind::linear     ? linear(s, x, y)
                      : s.kind == StepKind::lookup     ? lookup(s, x, y)
                      : s.kind == StepKind::layer_norm ? layer_norm(s, x, y)
                      : s.kind == StepKind::attention  ? attention(s, x, y)
                                                       : mover(s, x, y);
    if (why) return why;
    if (s.residual >= 0) {
      if (s.kind != StepKind::conv2d && s.kind != StepKind::linear) return "it takes no residual";
      if (!readable(s.residual) || s.residual == s.y) return "it adds a value that does not exist yet";
      const ProgramValue& r = program.values[s.residual];
      if (lies_anywhere(s.residual)) return "it adds an input whose pixels may lie anywhere";
      if (r.rank != y.rank || r.channels != y.channels || r.planar || r.border) return "it adds a value of other sizes";
    } else if (s.residual != -1) {
      return "it adds a value that does not exist yet";
    }
    known[size_t(s.y)] = true;
    return {};
  }
};

}  // namespace

std::string check_program(const void* bytes, int64_t size) {
  if (std::string why = check_header(bytes, size); !why.empty()) return why;
  const Program program(bytes);
  const ProgramHeader& h = *program.header;
  Checker checker{program, std::vector<bool>(size_t(h.values), false)};
  for (int32_t i = 0; i < h.values; ++i)
    if (const char* why = checker.value(program.values[i])) return why;
  for (int32_t i = 0; i < h.inputs; ++i) {
    const int32_t v = program.inputs[i];
    if (!within(v, 0, h.values - 1) || checker.known[size_t(v)] || program.values[v].slot != -1 || program.values[v].channels < 1 ||
        program.values[v].type != DType::f32)
      return sentence("input ", i, " is no float32 value of the caller's");
    checker.known[size_t(v)] = true;
  }
  const std::vector<bool> given = checker.known;
  for (int32_t i = 0; i < h.steps; ++i)
    if (std::string why = checker.step(program.steps[i]); !why.empty()) return sentence("step ", i, " may not run: ", why);
  std::vector<bool> callers = given;
  for (int32_t i = 0; i < h.outputs; ++i) {
    const int32_t v = program.outputs[i];
    if (!within(v, 0, h.values - 1) || !checker.known[size_t(v)] || callers[size_t(v)] || program.values[v].slot != -1 || program.values[v].type != DType::f32)
      return sentence("output ", i, " is no float32 value that a step writes");
    callers[size_t(v)] = true;
  }
  for (int32_t i = 0; i < h.values; ++i)
    if (program.values[i].slot == -1 && !callers[size_t(i)]) return sentence("value ", i, " lies nowhere");
  return {};
}

}  // namespace qk
