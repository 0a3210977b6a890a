// A program's bytes and the inputs of a call, checked; plans, kept for calls of the same sizes.
#pragma once
#include <map>
#include <memory>
#include <mutex>

#include "../cpu/program.h"
#include "array.h"

namespace qk {

Program checked_program(const Array& bytes);  // uint8 in one piece
Type input_type(const Program& program, int32_t i);

// How the caller's array has to lie: as it does, or, where it does not, in one piece, or pixel by pixel with channels together.
enum class Lies { well, contiguous, pixels };
Lies checked_input(const Program& program, int32_t i, const Array& x);
ProgramInput input_of(const Program& program, int32_t i, const Array& x);  // x as the program reads it; it lies as it has to

// The inputs of a call: look(i) is the caller's array, lay(i, how) leaves a copy in its place where it does not lie well.
template <class Look, class Lay>
std::vector<ProgramInput> checked_inputs(const Program& program, size_t given, Look look, Lay lay) {
  check(given == size_t(program.header->inputs), given, " inputs were given; the program takes ", program.header->inputs);
  std::vector<ProgramInput> inputs;
  for (size_t i = 0; i < given; ++i) {
    lay(i, checked_input(program, int32_t(i), look(i)));
    inputs.push_back(input_of(program, int32_t(i), look(i)));
  }
  return inputs;
}

ProgramPlan checked_plan(const Program& program, const ProgramInput* inputs, Isa isa, int threads);
void check_input_values(const Program& program, const ProgramPlan& plan, const ProgramInput* inputs);
// `run_program`, which refuses where a step has computed what the next one does not take.
void checked_run(const Program& program, const ProgramPlan& plan, const ProgramInput* inputs, void* const* outputs,
                 const Parallel& parallel, void* arena, double* seconds);
// Sizes of a value as its caller sees them, in the order of its memory where it is an image of pixels.
std::vector<int64_t> sizes_of(const Program& program, const ProgramPlan& plan, int32_t v);

// The plans of one program, which follow from sizes alone (the strides of inputs no plan asks). Any thread may ask.
class PlanCache {
 public:
  std::shared_ptr<const ProgramPlan> get(const Program& program, const std::vector<ProgramInput>& inputs, Isa isa, int threads);

 private:
  static constexpr size_t kMost = 64;
  std::mutex mutex_;
  std::map<std::vector<int64_t>, std::shared_ptr<const ProgramPlan>> plans_;
};

}  // namespace qk
