// The steps of a program that only transformers have: why a file's may not run, and each as the problem that it is.
#pragma once
#include "program.h"

namespace qk {

// Null if the step, a layer_norm or attention whose values exist, may run.
const char* check_layer_norm(const Program& program, const ProgramStep& s);
const char* check_attention(const Program& program, const ProgramStep& s);

// `mask`: of int8 values; x and y may be null while a call is planned.
LayerNormProblem layer_norm_problem(const Program& program, const ProgramStep& s, const ProgramShape& shape, const void* x, void* y, int8_t mask);
AttentionProblem attention_problem(const Program& program, const ProgramStep& s, const ProgramShape& shape, const void* x, void* y, int8_t mask);

}  // namespace qk
