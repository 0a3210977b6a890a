// NumPy arrays as the front sees them, and what every function here takes: options, an instruction set, threads.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <vector>

#include "../cpu/isa.h"
#include "../cpu/parallel.h"
#include "../front/operands.h"

namespace py = pybind11;

namespace qk {

using MaybeArray = std::optional<py::array>;

// An array of the caller's, kept alive with what its view points to. bfloat16, which NumPy lacks, travels as uint16 bits.
class View {
 public:
  // The array as it lies; copied where kernels read no such address or strides: where its values are not aligned (`aligned`), or
  // lie a fraction of a value apart.
  explicit View(const py::array& a, bool aligned = false);
  explicit View(const MaybeArray& a) : View(a ? *a : py::array(), true) {}
  View(const View&) = delete;
  // Images [N, H, W, C] in the front's order, N, C, H, W.
  View& as_images();

  const Array& operator*() const { return view_; }
  const Array* operator->() const { return &view_; }
  const py::array& array() const { return held_; }  // what is seen: the caller's, or its copy

 private:
  void look();

  py::array held_;
  std::string type_name_;
  std::vector<int64_t> sizes_;
  Array view_;
};

Type type_named(const std::string& name);      // "f32", "f16", "bf16", "s8"
py::dtype numpy_dtype(DType t);
py::array contiguous(const py::array& a);

// Keyword arguments that operators share.
struct Options {
  MaybeArray residual;
  EpilogueArgs epilogue;                       // its residual is set by whoever looks at the array
  std::string out_dtype = "f32";
  MaybeArray out;
  std::optional<std::string> isa, path;
  int threads = 1;
};
Options options_of(const py::kwargs& given);

Isa isa_of(const std::optional<std::string>& name);
Parallel checked_threads(int threads);

// The caller's output, checked, or a new one.
py::array output(const MaybeArray& out, const Sizes& shape, DType type);

}  // namespace qk
