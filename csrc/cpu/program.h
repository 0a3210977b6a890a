// Runs a chained model, step by step: core/program.h says what its bytes are, steps/ what a step does.
//
// The front that calls owns the memory: the program's bytes, which callers share and nothing writes; one arena a call,
// whose slots hold values that are never alive together; inputs and outputs.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "isa.h"
#include "parallel.h"
#include "../core/program.h"

namespace qk {

// The parts of a program, in place.
struct Program {
  const char* base;
  const ProgramHeader* header;
  const ProgramValue* values;
  const ProgramStep* steps;
  const int32_t* inputs;
  const int32_t* outputs;
  char* kept = nullptr;            // kept.h; null: nothing is kept
  bool fills_kept = false;         // plans fill what they take of it

  explicit Program(const void* bytes);
  std::string_view name(const ProgramStep& step) const { return {base + step.name, size_t(step.name_bytes)}; }
  bool is_input(int32_t v) const;
};

// Why these bytes are no program that may run, whoever wrote them; empty if they are one. Checks all but the checksum.
std::string check_program(const void* bytes, int64_t size);

// The sizes of a value; of tokens, h is their number.
struct ProgramShape {
  int64_t n = 0, h = 1, w = 1, c = 0;
  int32_t join_axis = -1;            // of a value that several steps write: the axis along which they do, -1: none
  int64_t joined = 0;                // and how far they have come

  constexpr int64_t size(int axis) const { return axis == 0 ? n : axis == 1 ? h : axis == 2 ? w : c; }
  constexpr int64_t count() const { return n * h * w * c; }
  constexpr bool whole() const { return join_axis < 0 || joined == size(join_axis); }
};

// An input of a call. Strides count elements, order n, c, h, w; rows and tokens are contiguous.
struct ProgramInput {
  const void* data;
  int rank;
  int64_t sizes[4];      // n, c, h, w; of tokens n, c, t, 1; of rows n, c, 1, 1
  int64_t strides[4];
};

inline ProgramInput program_input(const void* data, int rank) { return {data, rank, {0, 0, 1, 1}, {0, 1, 0, 0}}; }
// Where the sizes hold the caller's axis: channels come last in tokens.
constexpr int axis_of(int rank, int axis) { return rank == 3 && axis ? 3 - axis : axis; }

// Sizes, memory and the plan of every step for so many images at a time.
struct ProgramPart {
  int64_t images = 0;                // 0: there is no such part
  int threads = 1;
  std::vector<ProgramShape> shapes;  // of every value
  std::vector<int64_t> slots;        // their offsets in the arena
  std::unique_ptr<char[]> plans;     // of the steps, one after another: StepType::plan_room
  int64_t workspace = 0, bytes = 0;
};

// What follows from the sizes of a call's inputs. Images do not depend on each other, so a batch is cut: each thread takes
// images of its own, as many at a time as stay in cache from layer to layer; what does not divide is done together.
struct ProgramPlan {
  std::string error;                 // why the program does not take them, else empty
  ProgramPart whole;                 // the batch: sizes alone
  Isa isa = Isa::scalar;
  int8_t mask = 0;                   // of int8 values between steps: as the matrix kernel reads them
  int threads = 1;
  int64_t batch = 0, each = 0;       // images; of a thread of its own
  ProgramPart alone[2], shared[2];   // as many images at a time as stay in cache, and what is left
  bool looks_at_values = false;      // the values of inputs may be refused: check_values
  int64_t bytes_each = 0, arena_bytes = 0;
};

ProgramPlan plan_program(const Program& program, const ProgramInput* inputs, Isa isa, int threads);

// How many ids an int64 input may hold, 0 .. count - 1, by the steps that read it; INT64_MAX where none asks.
int64_t id_count(const Program& program, int32_t input);

// Why a call with these values of its inputs may not run; empty if it may. What steps compute is looked at as they run. Asked where plan.looks_at_values.
std::string check_values(const Program& program, const ProgramPlan& plan, const ProgramInput* inputs);

// `arena` has plan.arena_bytes, aligned to 64; `seconds`, where given, receives one figure a step. Returns why it stopped at
// values that a step had computed, in which case outputs hold nothing; empty where it did not.
std::string run_program(const Program& program, const ProgramPlan& plan, const ProgramInput* inputs, void* const* outputs,
                 const Parallel& parallel, void* arena, double* seconds = nullptr);

// Multiply-adds of a step, and the bytes that it reads and writes where every one moves once.
struct StepWork {
  int64_t macs, bytes;
};
StepWork work_of(const Program& program, const ProgramPlan& plan, const ProgramStep& step);

// Which way the plan takes a step, in a word; empty where there is one only, or nothing to do.
const char* way_of(const Program& program, const ProgramPlan& plan, int32_t step);

}  // namespace qk
