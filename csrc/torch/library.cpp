// The operators, as torch sees them. Implementations: cpu_ops.cpp, cuda_ops.cpp, program_ops.cpp; meta ones: qkernels/ops.py.
#include <torch/csrc/stable/library.h>

// Arguments that several operators share, with their meaning in qkernels/ops.py.
#define QK_EPILOGUE_ARGS                                                                      \
  "Tensor? residual=None, float residual_scale=1.0, int residual_zero_point=0, "             \
  "float? clamp_min=None, float? clamp_max=None, ScalarType? out_dtype=None, "               \
  "float output_scale=1.0, int output_zero_point=0"

#define QK_OPERAND_ARGS                                                                       \
  "Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias, Tensor? input_scale, "        \
  "Tensor? input_zero_point, bool symmetric, "

STABLE_TORCH_LIBRARY(qkernels, m) {
  m.def("quantize(Tensor x, Tensor scale, Tensor zero_point) -> Tensor");
  m.def("quantize_dynamic(Tensor x, bool per_row, bool symmetric) -> (Tensor, Tensor, Tensor)");
  m.def("dequantize(Tensor q, Tensor scale, Tensor zero_point, ScalarType dtype) -> Tensor");
  m.def("pack_weight(Tensor weight, int groups) -> Tensor");
  m.def("unpack_weight(Tensor packed, int[] size, int groups) -> Tensor");
  m.def("linear(" QK_OPERAND_ARGS QK_EPILOGUE_ARGS ") -> Tensor");
  m.def("linear_weight_only(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias, " QK_EPILOGUE_ARGS ") -> Tensor");
  m.def("conv2d(" QK_OPERAND_ARGS
        "int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups, str padding_mode, " QK_EPILOGUE_ARGS
        ") -> Tensor");
  m.def("max_pool2d(Tensor x, int[] kernel_size, int[] stride, int[] padding, int[] dilation, bool ceil_mode) -> Tensor");
  m.def("avg_pool2d(Tensor x, int zero_point, int[] kernel_size, int[] stride, int[] padding, bool ceil_mode, "
        "bool count_include_pad) -> Tensor");
  m.def("lookup(Tensor x, Tensor table) -> Tensor");
  m.def("mean_pool2d(Tensor x) -> Tensor");
  m.def("run_program(Tensor program, Tensor(a!) arena, Tensor[] inputs, Tensor(b!)? seconds=None, Tensor? kept=None) -> Tensor[]");
  m.def("cpu_isa() -> str");
  m.def("cpu_isas() -> str");
  m.def("packed_bytes(int[] size, int groups) -> int");
}
