// qkernels._core.Program: a saved model, run on NumPy arrays.
#pragma once
#include <pybind11/pybind11.h>

namespace qk {

void bind_program(pybind11::module_& m);

}  // namespace qk
