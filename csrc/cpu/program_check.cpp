// Why bytes are no program that may run: the tables here, each step's payload by its kind.
#include <algorithm>
#include <cstring>

#include "steps/step.h"

namespace qk {
namespace {

constexpr int32_t kMaxCount = 1 << 16;  // of values, steps, slots

std::string check_header(const void* bytes, int64_t size) {
  ProgramHeader h;
  if (size < int64_t(sizeof h)) return sentence("it has ", size, " bytes, fewer than the header of a program");
  std::memcpy(&h, bytes, sizeof h);
  if (std::memcmp(&h.magic, ProgramMagic().bytes, sizeof h.magic) != 0) return "it does not begin as a program does";
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
  bool exists(int32_t v) const { return within(v, 0, program.header->values - 1); }

  const char* value(const ProgramValue& v) const {
    if (v.slot < -1 || v.slot >= program.header->slots) return "a value lies in no slot";
    if (v.rank < 2 || v.rank > 4 || v.channels < 0 || v.planar > (v.rank == 4) || v.nhwc_only > (v.rank == 4 && !v.planar)) return "a value has no sizes";
    if (v.fixed_h < 0 || v.fixed_w < 0 || (v.rank < 3 && v.fixed_h) || (v.rank < 4 && v.fixed_w)) return "a value has fixed sizes that it cannot have";
    if (v.type != DType::f32 && v.type != DType::s8 && v.type != DType::s64) return "a value is neither float32, int8 nor int64";
    if (v.planar && v.slot >= 0) return "a value between steps is planar";
    if (!within(v.border, 0, v.slot >= 0 && v.type == DType::s8 && v.rank == 4 && !v.planar ? kMaxBorder : 0)) return "a value has a border that none may have";
    return nullptr;
  }

  const char* reads(const ProgramStep& s, const StepType& type) const {
    for (int i = 0; i < StepReads::kMost; ++i) {
      const int32_t v = s.reads[i];
      if (v == -1 && i > 0) continue;
      if (i >= type.most_reads) return "it reads more values than its kind";
      if (!exists(v) || !known[size_t(v)] || v == s.y) return i ? "it adds a value that does not exist yet" : "it reads a value that does not exist yet";
    }
    return nullptr;
  }

  // Why the step may not run; null if it may.
  const char* step(const ProgramStep& s) {
    if (!within(s.kind, 0, kStepKinds - 1) || !inside(s.name, s.name_bytes, 1)) return "it has no kind or name";
    const StepType& type = type_of(s);
    if (!inside(s.payload, type.payload.bytes, 8)) return "its payload lies outside";
    if (const char* why = reads(s, type)) return why;
    if (!exists(s.y)) return "it writes a value that does not exist";
    const StepCheck c{program, s, program.values[s.reads[0]], program.values[s.y], known[size_t(s.y)]};
    if (!type.strided && (c.x.border || c.y.border)) return "it is no convolution, but a value of it has a border";
    if (program.is_input(s.y)) return "it writes an input";
    if (c.written && !type.joins) return "it writes a value that exists already, or a part of none";
    if (!type.strided && c.lies_anywhere(s.reads[0])) return "it reads an input whose pixels may lie anywhere";
    if (c.y.planar && !type.writes_planes) return "it writes no planes";
    for (int i = 0; i < type.most_reads && s.reads[i] >= 0; ++i) {
      const ProgramValue& read = program.values[s.reads[i]];
      if (read.planar && !type.reads_planes) return "it reads no planes";
      if (read.type == DType::s64 && !type.reads_integers) return "it computes with no int64";
    }
    known[size_t(s.y)] = true;
    return type.check(c);
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
    if (!checker.exists(v) || checker.known[size_t(v)] || program.values[v].slot != -1 || program.values[v].type == DType::s8)
      return sentence("input ", i, " is no float32 or int64 value of the caller's");
    checker.known[size_t(v)] = true;
  }
  const std::vector<bool> given = checker.known;
  for (int32_t i = 0; i < h.values; ++i) {
    const ProgramValue& v = program.values[i];
    if (!given[size_t(i)] && (v.type == DType::s64 || v.fixed_h || v.fixed_w)) return sentence("value ", i, " is no input, but int64 or of fixed sizes");
  }
  for (int32_t i = 0; i < h.steps; ++i)
    if (const char* why = checker.step(program.steps[i])) return sentence("step ", i, " may not run: ", why);
  std::vector<bool> callers = given;
  for (int32_t i = 0; i < h.outputs; ++i) {
    const int32_t v = program.outputs[i];
    if (!checker.exists(v) || !checker.known[size_t(v)] || callers[size_t(v)] || program.values[v].slot != -1 || program.values[v].type != DType::f32)
      return sentence("output ", i, " is no float32 value that a step writes");
    callers[size_t(v)] = true;
  }
  for (int32_t i = 0; i < h.values; ++i)
    if (program.values[i].slot == -1 && !callers[size_t(i)]) return sentence("value ", i, " lies nowhere");
  return {};
}

}  // namespace qk
