// A program's bytes and the inputs of a call, checked.
#pragma once
#include "../cpu/program.h"
#include "array.h"

namespace qk {

Program checked_program(const Array& bytes);  // uint8 in one piece
void check_input_count(const Program& program, size_t given);
void check_input(int64_t i, const Array& x);
// x as the program reads it: images [n, c, h, w] of any strides, channels together where it says so, tokens and rows contiguous.
ProgramInput input_of(const Program& program, int32_t i, const Array& x);
bool input_lies(const Program& program, int32_t i, const Array& x);
ProgramPlan checked_plan(const Program& program, const ProgramInput* inputs, Isa isa, int threads);
// Sizes of a value as its caller sees them, in the order of its memory where it is an image of pixels.
std::vector<int64_t> sizes_of(const Program& program, const ProgramPlan& plan, int32_t v);

}  // namespace qk
