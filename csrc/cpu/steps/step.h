// A kind of step: the questions that a program asks it, from the check of its bytes to the run. One file a kind.
#pragma once
#include <algorithm>
#include <cmath>

#include "../../core/layout.h"
#include "../../core/scale.h"
#include "../kept.h"
#include "../program.h"
#include "../sentence.h"

namespace qk {

inline bool within(int64_t v, int64_t lo, int64_t hi) { return v >= lo && v <= hi; }

template <class Payload>
const Payload& payload_of(const Program& program, const ProgramStep& step) {
  return *reinterpret_cast<const Payload*>(program.base + step.payload);
}

// One step of bytes that anybody may have written. Its row is sound: x and whatever else it reads exist, y does not yet.
struct StepCheck {
  const Program& program;
  const ProgramStep& step;
  const ProgramValue &x, &y;
  bool written;                  // another step has written a part of y

  // Whether a value is an image of the caller's that may have any strides.
  bool lies_anywhere(int32_t v) const {
    const ProgramValue& value = program.values[v];
    return program.is_input(v) && value.rank == 4 && !value.nhwc_only && !value.planar;
  }
  template <class Payload>
  const Payload& payload() const { return payload_of<Payload>(program, step); }
  // Whether exactly so many bytes lie within the program, where kernels may read them.
  bool holds(const Constant& c, int64_t bytes) const {
    return c.bytes == bytes && c.at > 0 && c.at % kAlignment == 0 && bytes >= 0 && bytes <= program.header->bytes && c.at <= program.header->bytes - bytes;
  }
  template <class T>
  const T* at(const Constant& c) const { return reinterpret_cast<const T*>(program.base + c.at); }
};

// One step of a call: the sizes and places of its values. Places are null while it is planned.
struct StepCall {
  const Program& program;
  const ProgramStep& step;
  const ProgramPart& part;
  const ProgramInput* inputs;
  void* const* outputs;
  char* arena;
  Isa isa;
  int8_t mask;                   // of int8 values: as the matrix kernel reads them
  int64_t first = 0;             // the place in the caller's batch of what is called with

  template <class Payload>
  const Payload& payload() const { return payload_of<Payload>(program, step); }
  template <class T>
  const T* constant(const Constant& c) const { return c.at ? reinterpret_cast<const T*>(program.base + c.at) : nullptr; }

  const ProgramValue& value(int32_t v) const { return program.values[v]; }
  const ProgramShape& shape(int32_t v) const { return part.shapes[size_t(v)]; }
  int32_t read(int i) const { return step.reads[i]; }
  const ProgramValue& x() const { return value(read(0)); }
  const ProgramValue& y() const { return value(step.y); }
  const ProgramShape& x_shape() const { return shape(read(0)); }
  const ProgramShape& y_shape() const { return shape(step.y); }
  int8_t mask_of(const ProgramValue& v) const { return v.type == DType::s8 ? mask : int8_t(0); }

  // The step's place among what the program keeps; null: it has none.
  KeptPlace* kept() const {
    KeptPlace* place = program.kept ? reinterpret_cast<KeptPlace*>(program.kept) + (&step - program.steps) : nullptr;
    return place && place->bytes ? place : nullptr;
  }
  // The first pixel inside its border.
  void* data(int32_t v) const {
    const ProgramValue& of = value(v);
    const ProgramShape& s = shape(v);
    const int64_t before = of.border * (s.w + 2 * of.border + 1) * s.c;  // bytes of the border in front of it
    if (of.slot >= 0) return arena ? arena + part.slots[size_t(of.slot)] + before : nullptr;
    for (int32_t i = 0; i < program.header->inputs; ++i)
      if (program.inputs[i] == v) return const_cast<void*>(inputs[i].data);
    for (int32_t i = 0; outputs && i < program.header->outputs; ++i)
      if (program.outputs[i] == v) return outputs[i];
    return nullptr;
  }
  // Of an image, elements in order n, c, h, w.
  void strides(int32_t v, int64_t* s) const {
    for (int32_t i = 0; i < program.header->inputs; ++i)
      if (program.inputs[i] == v) {
        std::copy_n(inputs[i].strides, 4, s);
        return;
      }
    const ProgramShape& of = shape(v);
    const int64_t border = 2 * value(v).border;
    s[1] = 1, s[3] = of.c, s[2] = (of.w + border) * s[3], s[0] = (of.h + border) * s[2];
  }
  template <class T>
  T* data_as(int32_t v) const { return static_cast<T*>(data(v)); }
};

// A payload as `_core` tells it to Python.
struct PayloadType {
  const Field* (*fields)();
  void (*read)(const void* payload, const FieldReader& reader);
  int32_t bytes;
};
template <class Payload>
constexpr PayloadType kPayload{Payload::fields, Payload::read, kBytesOf<Payload>};

struct StepType {
  const char* name;
  PayloadType payload;
  int32_t most_reads = 1;
  bool strided = false;          // it reads an image that lies anywhere or has a border, and writes a border
  bool joins = false;            // it may write a part of a y that exists
  bool reads_planes = false, writes_planes = false;  // x, y may be planar
  bool reads_integers = false;   // x may be int64
  // Whether y is x as it lies, so that both may have one place; null: never.
  bool (*is_view)(const void* payload) = nullptr;
  // Why it may not run; null if it may.
  const char* (*check)(const StepCheck& c);
  // The sizes of y from those of what it reads, or why it does not take them; y comes as [n, 1, 1, its channels].
  std::string (*shape)(const StepCall& call, ProgramShape& y);
  // Leaves what `run` goes by in `plan`, and returns the bytes that it works in; null: nothing is planned.
  int32_t plan_bytes = 0;
  int64_t (*plan)(const StepCall& call, int threads, void* plan) = nullptr;
  int64_t plan_room() const { return round_up(plan_bytes, 16); }
  void (*run)(const StepCall& call, const void* plan, const Parallel& parallel, void* workspace);
  // Which way a plan takes, in a word; null: there is one.
  const char* (*way)(const void* plan) = nullptr;
  // Bytes of another form of its weight, which it may keep from call to call (kept.h); null: there is none.
  int64_t (*kept_room)(const Program& program, const ProgramStep& step) = nullptr;
  // How many ids there are for it: those of x are from 0 on and below this; null: it reads none.
  int64_t (*id_count)(const void* payload) = nullptr;
  // Multiply-adds of one of y's n; null: none. A double, since sizes are not checked before it.
  double (*macs)(const StepCall& call) = nullptr;
  // Why it may not run on the values that its `checked_read` holds, looked at before any step runs where that is the
  // caller's, else before this one; null: it may on any.
  std::string (*check_values)(const StepCall& call) = nullptr;
  int checked_read = 0;
};

#define QK_STEP(kind) extern const StepType kind##_step;
#include "steps.inc"
#undef QK_STEP

inline const StepType* const kStepTypes[] = {
#define QK_STEP(kind) &kind##_step,
#include "steps.inc"
#undef QK_STEP
};
constexpr int32_t kStepKinds = int32_t(sizeof kStepTypes / sizeof *kStepTypes);

inline const StepType& type_of(const ProgramStep& step) { return *kStepTypes[step.kind]; }

// Whether a step looks at values that another has computed.
inline bool checks_computed(const Program& program, const ProgramStep& step) {
  const StepType& type = type_of(step);
  return type.check_values && !program.is_input(step.reads[type.checked_read]);
}

// ---- what several kinds share

constexpr double kMaxElements = 0x1p48, kMaxWork = 0x1p60, kMaxBytes = 0x1p50;  // so that no sum overflows, whatever a file says

inline std::string too_large(const StepCall& call) {
  const ProgramShape& x = call.x_shape();
  if (call.x().rank == 3) return sentence("a sequence of ", x.h, " tokens is too large");
  return sentence("an image of ", x.h, "x", x.w, " is too large");
}

inline std::string same_shape(const StepCall& call, ProgramShape& y) {
  y = call.x_shape();
  return {};
}

// An image in, an image out, in memory order [n, h, w, c].
inline bool are_images(const StepCheck& c) {
  return c.x.rank == 4 && c.x.channels >= 1 && !c.x.planar && c.y.rank == 4 && !c.y.planar && c.x.type == c.y.type;
}

// Scale and zero point of an int8 y.
#define QK_OUTPUT(F) F(float, out_inv_scale, 1.0f) F(int32_t, out_zero, 0)

template <class Payload>
const char* check_output(const Payload& p) {
  return is_scale(p.out_inv_scale) && within(p.out_zero, -128, 127) ? nullptr : "its output has no scale or zero point";
}

template <class Payload>
Epilogue output_of(const StepCall& call, const Payload& p) {
  Epilogue e;
  e.out_type = call.y().type;
  e.out_inv_scale = p.out_inv_scale;
  e.out_zero = p.out_zero;
  e.out_mask = call.mask;
  return e;
}

// Windows of an image, one a pixel of y.
#define QK_WINDOW(F)                                                                         \
  F(int32_t, kh, 1) F(int32_t, kw, 1) F(int32_t, stride_h, 1) F(int32_t, stride_w, 1)        \
  F(int32_t, dilation_h, 1) F(int32_t, dilation_w, 1)

template <class Payload>
const char* check_window(const Payload& p) {
  const bool good = p.kh >= 1 && p.kw >= 1 && p.stride_h >= 1 && p.stride_w >= 1 && p.dilation_h >= 1 && p.dilation_w >= 1;
  return good ? nullptr : "its window is empty";
}

// Why a padded image of h x w holds no window.
template <class Payload>
std::string check_extent(const Payload& p, int64_t h, int64_t w) {
  const int64_t kh = int64_t(p.dilation_h) * (p.kh - 1) + 1, kw = int64_t(p.dilation_w) * (p.kw - 1) + 1;
  if (h >= kh && w >= kw) return {};
  return sentence("its window, ", kh, "x", kw, ", is larger than the padded image, ", h, "x", w);
}

}  // namespace qk
