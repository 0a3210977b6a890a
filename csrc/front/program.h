// A program's bytes and the inputs of a call, checked.
#pragma once
#include "../cpu/program.h"
#include "array.h"

namespace qk {

Program checked_program(const Array& bytes);  // uint8 in one piece
void check_input_count(const Program& program, size_t given);
Type input_type(const Program& program, int32_t i);
void check_input(const Program& program, int32_t i, const Array& x);
// How an input has to lie: images anywhere, or channels together; planar ones, tokens and rows contiguous.
enum class InputLies { anywhere, pixels, contiguous };
InputLies input_lies(const Program& program, int32_t i, const Array& x);
bool lies(const Array& x, InputLies how);
ProgramInput input_of(const Program& program, int32_t i, const Array& x);  // x as the program reads it; it lies as it has to
ProgramPlan checked_plan(const Program& program, const ProgramInput* inputs, Isa isa, int threads);
void check_input_values(const Program& program, const ProgramPlan& plan, const ProgramInput* inputs);
// Sizes of a value as its caller sees them, in the order of its memory where it is an image of pixels.
std::vector<int64_t> sizes_of(const Program& program, const ProgramPlan& plan, int32_t v);

}  // namespace qk
