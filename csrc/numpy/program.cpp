#include "program.h"

#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "../cpu/steps/step.h"
#include "../front/program.h"
#include "arrays.h"

namespace qk {
namespace {

// Memory of one call, kept for the next one. Aligned by hand: glibc 2.36 leaves pieces of an aligned allocation in its
// thread cache, and what lies between them is never used again, so that a server grew with every model it replaced.
class Arena {
 public:
  void* at_least(int64_t bytes) {
    if (bytes > size_) {
      size_ = 0;
      memory_.reset(new (std::nothrow) char[size_t(bytes) + kAlignment - 1]);
      if (!memory_) throw std::bad_alloc();  // said here, since a throwing `new` of AddressSanitizer ends the process
      size_ = bytes;
    }
    return aligned(memory_.get());
  }

 private:
  std::unique_ptr<char[]> memory_;
  int64_t size_ = 0;
};

// Holds the bytes and, for every call at a time, an arena.
class LoadedProgram {
 public:
  explicit LoadedProgram(const py::buffer& bytes) : buffer_(bytes.request()) {
    Array given;
    const int64_t size = buffer_.size * buffer_.itemsize;
    given.data = buffer_.ptr, given.axes = 1, given.sizes = &size;
    given.contiguous = PyBuffer_IsContiguous(buffer_.view(), 'C');
    program_.emplace(checked_program(given));
    if (!keeps_weights()) return;
    kept_room_ = kept_room(*program_);
    program_->kept = static_cast<char*>(kept_.at_least(kept_room_));
    program_->fills_kept = true;
    begin_kept(*program_, program_->kept);
  }

  py::list run(const std::vector<py::array>& arrays, int threads, bool timed, py::object seconds_out, const std::optional<std::string>& isa_name) {
    const Isa isa = isa_of(isa_name);
    std::vector<std::optional<View>> held(arrays.size());
    for (size_t i = 0; i < arrays.size(); ++i) held[i].emplace(arrays[i], true);
    const std::vector<ProgramInput> inputs = inputs_of(held);
    const Parallel parallel = checked_threads(threads);
    const std::shared_ptr<const ProgramPlan> shared = plans_.get(*program_, inputs, isa, threads);
    const ProgramPlan& plan = *shared;
    check_input_values(*program_, plan, inputs.data());
    const ProgramHeader& h = *program_->header;
    py::list results;
    std::vector<void*> outputs;
    for (int32_t i = 0; i < h.outputs; ++i) {
      py::array_t<float> y(sizes_of(*program_, plan, program_->outputs[i]));
      outputs.push_back(y.mutable_data());
      results.append(as_sent(y, program_->outputs[i]));
    }
    std::vector<double> seconds(timed ? size_t(h.steps) : 0);
    {
      py::gil_scoped_release free;
      std::unique_ptr<Arena> arena = take();
      checked_run(*program_, plan, inputs.data(), outputs.data(), parallel, arena->at_least(plan.arena_bytes),
                  timed ? seconds.data() : nullptr);
      give(std::move(arena));
    }
    if (timed) seconds_out.attr("extend")(py::cast(seconds));
    return results;
  }

  // What a call with inputs of these sizes does, step by step.
  py::list steps(const std::vector<std::vector<int64_t>>& input_sizes, int threads) {
    const std::shared_ptr<const ProgramPlan> made = plans_.get(*program_, inputs_of(input_sizes), active_isa(), threads);
    const ProgramPlan& plan = *made;
    py::list rows;
    for (int32_t i = 0; i < program_->header->steps; ++i) {
      const ProgramStep& s = program_->steps[i];
      const StepWork work = work_of(*program_, plan, s);
      py::dict row;
      row["name"] = std::string(program_->name(s));
      row["kind"] = type_of(s).name;
      row["path"] = way_of(*program_, plan, i);
      row["x"] = described(plan, s.reads[0]);
      row["y"] = described(plan, s.y);
      row["macs"] = work.macs;
      row["bytes"] = work.bytes;
      rows.append(row);
    }
    return rows;
  }

  int64_t arena_bytes(const std::vector<std::vector<int64_t>>& input_sizes, int threads) {
    return plans_.get(*program_, inputs_of(input_sizes), active_isa(), threads)->arena_bytes;
  }

  int64_t kept_bytes() const { return qk::kept_bytes(*program_); }

  // What is kept, as run_program of torch takes it: the same memory, which stays while the array does.
  static py::object kept(const py::object& self) {
    const LoadedProgram& own = self.cast<const LoadedProgram&>();
    if (!own.program_->kept) return py::none();
    return py::array_t<uint8_t>({own.kept_room_}, {1}, reinterpret_cast<const uint8_t*>(own.program_->kept), self);
  }

  py::list signature(bool inputs) const {
    py::list all;
    const ProgramHeader& h = *program_->header;
    for (int32_t i = 0; i < (inputs ? h.inputs : h.outputs); ++i) {
      const ProgramValue& v = program_->values[(inputs ? program_->inputs : program_->outputs)[i]];
      all.append(py::make_tuple(int(v.rank), v.channels));
    }
    return all;
  }

  py::list input_dtypes() const {
    py::list all;
    for (int32_t i = 0; i < program_->header->inputs; ++i) all.append(input_type(*program_, i).name);
    return all;
  }

  py::list id_counts() const {
    py::list all;
    for (int32_t i = 0; i < program_->header->inputs; ++i) {
      if (input_type(*program_, i).element == Element::s64) all.append(id_count(*program_, i));
      else all.append(py::none());
    }
    return all;
  }

  int64_t max_batch() const { return program_->header->max_batch; }

 private:
  const ProgramValue& value(int32_t v) const { return program_->values[v]; }

  // [N, C, H, W], whatever lies in memory.
  py::object as_sent(const py::object& y, int32_t v) const {
    return value(v).rank == 4 && !value(v).planar ? y.attr("transpose")(0, 3, 1, 2) : y;
  }

  std::string described(const ProgramPlan& plan, int32_t v) const {
    std::string text = sentence(kDTypeNames[int(value(v).type)], " [");
    const std::vector<int64_t> all = sizes_of(*program_, plan, v);
    for (size_t i = 0; i < all.size(); ++i) text += (i ? ", " : "") + std::to_string(all[i]);
    return text + "]";
  }

  // Copied only where they do not lie as the program reads them.
  std::vector<ProgramInput> inputs_of(std::vector<std::optional<View>>& held) const {
    return checked_inputs(*program_, held.size(), [&](size_t i) { return **held[i]; }, [&](size_t i, Lies how) {
      if (how == Lies::well) return;
      const py::array x = held[i]->array();
      held[i].emplace(how == Lies::contiguous ? contiguous(x)
                                              : contiguous(x.attr("transpose")(0, 2, 3, 1)).attr("transpose")(0, 3, 1, 2).cast<py::array>());
    });
  }

  // Inputs without memory.
  std::vector<ProgramInput> inputs_of(const std::vector<std::vector<int64_t>>& all) const {
    return checked_inputs(*program_, all.size(), [&](size_t i) {
      Array x;
      x.axes = int64_t(all[i].size()), x.sizes = all[i].data(), x.type = input_type(*program_, int32_t(i));
      set_contiguous_strides(x);
      return x;
    }, [](size_t, Lies) {});
  }

  std::unique_ptr<Arena> take() {
    std::lock_guard<std::mutex> lock(mutex_);
    if (arenas_.empty()) return std::make_unique<Arena>();
    std::unique_ptr<Arena> arena = std::move(arenas_.back());
    arenas_.pop_back();
    return arena;
  }
  void give(std::unique_ptr<Arena> arena) {
    std::lock_guard<std::mutex> lock(mutex_);
    arenas_.push_back(std::move(arena));
  }

  py::buffer_info buffer_;
  std::optional<Program> program_;
  Arena kept_;
  int64_t kept_room_ = 0;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Arena>> arenas_;
  PlanCache plans_;
};

// ---- the format, as Python writes it

py::list fields_of(const Field* field) {
  py::list rows;
  for (; field->name; ++field) {
    py::list choices;
    for (const char* const* name = field->choices; name && *name; ++name) choices.append(*name);
    rows.append(py::make_tuple(field->name, field->format, field->offset, field->initial, py::tuple(choices)));
  }
  return rows;
}

template <class Record>
py::dict record() {
  py::dict d;
  d["fields"] = fields_of(Record::fields());
  d["bytes"] = sizeof(Record);
  return d;
}

// Every record of the format; a field is (name, format, offset, default, names of its values).
py::dict records() {
  py::dict all;
  all["header"] = record<ProgramHeader>();
  all["value"] = record<ProgramValue>();
  all["step"] = record<ProgramStep>();
  return all;
}

// The kinds of steps in the order of their numbers, each with the record of its payload.
py::dict step_kinds() {
  py::dict all;
  for (const StepType* type : kStepTypes) {
    py::dict d;
    d["fields"] = fields_of(type->payload.fields());
    d["bytes"] = type->payload.bytes;
    d["strided"] = type->strided;
    d["may_be_view"] = type->is_view != nullptr;
    all[type->name] = d;
  }
  return all;
}

const StepType& kind_named(const std::string& kind) {
  for (const StepType* type : kStepTypes)
    if (kind == type->name) return *type;
  throw std::invalid_argument("step kind '" + kind + "' is unknown");
}

// The bytes of a payload where C++ may read them as its struct.
std::vector<int64_t> payload_from(const StepType& type, const py::bytes& bytes) {
  std::vector<int64_t> words(size_t(type.payload.bytes / 8 + 1));
  const std::string_view given = bytes;
  if (int64_t(given.size()) != type.payload.bytes)
    throw std::invalid_argument(sentence("a payload of ", type.name, " has ", type.payload.bytes, " bytes, not ", given.size()));
  std::memcpy(words.data(), given.data(), given.size());
  return words;
}

bool is_view(const std::string& kind, const py::bytes& bytes) {
  const StepType& type = kind_named(kind);
  return type.is_view && type.is_view(payload_from(type, bytes).data());
}

// What C++ reads in a payload: pairs of a field's name and its number, of those of a constant two.
py::list read_payload(const std::string& kind, const py::bytes& bytes) {
  const StepType& type = kind_named(kind);
  py::list rows;
  type.payload.read(payload_from(type, bytes).data(), {&rows, [](void* to, const char* field, const char* part, double value) {
    static_cast<py::list*>(to)->append(py::make_tuple(*part ? std::string(field) + "." + part : std::string(field), value));
  }});
  return rows;
}

}  // namespace

void bind_program(py::module_& m) {
  using namespace pybind11::literals;
  m.attr("PROGRAM_VERSION") = kProgramVersion;
  m.attr("PROGRAM_MAGIC") = py::bytes(ProgramMagic().bytes, sizeof ProgramMagic().bytes);
  m.attr("MAX_BORDER") = kMaxBorder;
  m.attr("MAX_SCANNED") = kMaxScanned;
  m.attr("PROGRAM_RECORDS") = records();
  m.attr("STEP_KINDS") = step_kinds();
  m.def("read_payload", &read_payload, "kind"_a, "payload"_a, "The fields of a step's payload, as C++ reads them.");
  m.def("is_view", &is_view, "kind"_a, "payload"_a, "Whether a step with this payload leaves its x as it lies.");
  py::class_<LoadedProgram>(m, "Program", "A chained model, from the bytes of a saved program; they are not copied.")
      .def(py::init<py::buffer>(), "bytes"_a)
      .def("run", &LoadedProgram::run, "inputs"_a, "threads"_a = 1, "timed"_a = false, "seconds"_a = py::none(), "isa"_a = py::none(),
           "arrays [N, C, H, W], [N, T, C] or [N, C], any strides, float32 or int64 as the program says, to a list of arrays; timed: appends each step's seconds. Any thread may call.")
      .def("steps", &LoadedProgram::steps, "input_sizes"_a, "threads"_a = 1, "What a call with inputs of these sizes does: one dict a step.")
      .def("arena_bytes", &LoadedProgram::arena_bytes, "input_sizes"_a, "threads"_a = 1, "Memory of one call, beside weights, inputs and outputs.")
      .def("signature", &LoadedProgram::signature, "inputs"_a, "(axes, channels) of the inputs, or of the outputs.")
      .def_property_readonly("input_dtypes", &LoadedProgram::input_dtypes)
      .def_property_readonly("id_counts", &LoadedProgram::id_counts)
      .def_property_readonly("kept_bytes", &LoadedProgram::kept_bytes, "Memory of weights in another form, kept from call to call.")
      .def_property_readonly("kept", &LoadedProgram::kept, "What is kept, as torch's run_program takes it.")
      .def_property_readonly("max_batch", &LoadedProgram::max_batch);
}

}  // namespace qk
