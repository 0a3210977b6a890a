#include "arrays.h"

#include "threads.h"

namespace qk {
namespace {

constexpr int kAligned = int(py::detail::npy_api::NPY_ARRAY_ALIGNED_);

// The type of values that kernels know; `other`, without a name, for anything else.
Type type_of(const py::dtype& type) {
  const char kind = type.kind();
  const auto size = type.itemsize();
  const bool native = type.byteorder() != '>' || size == 1;  // every machine we run on is little-endian
  if (native && kind == 'f' && size == 4) return {Element::f32, "float32"};
  if (native && kind == 'f' && size == 2) return {Element::f16, "float16"};
  if (native && kind == 'u' && size == 2) return {Element::bf16, "bfloat16"};
  if (native && kind == 'i' && size == 1) return {Element::s8, "int8"};
  if (native && kind == 'i' && size == 4) return {Element::i32, "int32"};
  if (native && kind == 'i' && size == 8) return {Element::s64, "int64"};
  return {Element::other, nullptr};
}

bool whole_strides(const py::array& a) {
  for (py::ssize_t i = 0; i < a.ndim(); ++i)
    if (a.strides(i) % a.itemsize()) return false;
  return true;
}

template <class T>
void take(py::dict& kwargs, const char* key, T& value) {
  if (!kwargs.contains(key)) return;
  value = kwargs[key].cast<T>();
  PyDict_DelItemString(kwargs.ptr(), key);
}

}  // namespace

py::array contiguous(const py::array& a) {
  return py::module_::import("numpy").attr("require")(a, py::none(), py::make_tuple("C", "A")).cast<py::array>();
}

View::View(const py::array& a, bool aligned) : held_(a) {
  if (!whole_strides(a) || (aligned && !(a.flags() & kAligned))) held_ = contiguous(a);
  look();
}

void View::look() {
  sizes_.assign(held_.shape(), held_.shape() + held_.ndim());
  view_.data = held_.data();
  view_.type = type_of(held_.dtype());
  if (!view_.type.name) {
    type_name_ = py::str(held_.dtype()).cast<std::string>();
    view_.type.name = type_name_.c_str();
  }
  view_.axes = held_.ndim(), view_.sizes = sizes_.data();
  view_.contiguous = held_.flags() & py::array::c_style;
  for (py::ssize_t i = 0; i < held_.ndim() && i < 4; ++i) view_.strides[i] = held_.strides(i) / held_.itemsize();
}

View& View::as_images() {
  if (view_.axes == 4) {
    held_ = held_.attr("transpose")(0, 3, 1, 2).cast<py::array>();
    look();
  }
  return *this;
}

Type type_named(const std::string& name) {
  if (name == "f32") return {Element::f32, "float32"};
  if (name == "f16") return {Element::f16, "float16"};
  if (name == "bf16") return {Element::bf16, "bfloat16"};
  if (name == "s8") return {Element::s8, "int8"};
  refuse<TypeRefusal>("dtype '", name, "' is unknown; choose one of f32, f16, bf16, s8");
}

py::dtype numpy_dtype(DType t) {
  switch (t) {
    case DType::f32: return py::dtype("float32");
    case DType::f16: return py::dtype("float16");
    case DType::bf16: return py::dtype("uint16");
    default: return py::dtype("int8");
  }
}

Options options_of(const py::kwargs& given) {
  py::dict kwargs = given.attr("copy")();
  Options o;
  take(kwargs, "residual", o.residual);
  take(kwargs, "residual_scale", o.epilogue.residual_scale);
  take(kwargs, "residual_zero_point", o.epilogue.residual_zero_point);
  take(kwargs, "clamp_min", o.epilogue.clamp_min);
  take(kwargs, "clamp_max", o.epilogue.clamp_max);
  take(kwargs, "out_dtype", o.out_dtype);
  take(kwargs, "output_scale", o.epilogue.output_scale);
  take(kwargs, "output_zero_point", o.epilogue.output_zero_point);
  take(kwargs, "out", o.out);
  take(kwargs, "isa", o.isa);
  take(kwargs, "path", o.path);
  take(kwargs, "threads", o.threads);
  for (auto item : kwargs) throw py::type_error("unexpected keyword argument '" + item.first.cast<std::string>() + "'");
  o.epilogue.out_dtype = type_named(o.out_dtype);
  return o;
}

Isa isa_of(const std::optional<std::string>& name) {
  if (!name) return active_isa();
  Isa isa;
  check(parse_isa(name->c_str(), &isa), "isa='", *name, "' is unknown; choose one of ", known_isas());
  check(isa_available(isa), "isa='", *name, "' does not run on this machine; the best here is ", isa_name(best_isa()));
  return isa;
}

Parallel checked_threads(int threads) {
  check(threads >= 1 && threads <= kMaxThreads, "threads=", threads, " is outside [1, ", kMaxThreads, "]");
  return plain_threads(threads);
}

py::array output(const MaybeArray& out, const Sizes& shape, DType type) {
  if (!out) return py::array(numpy_dtype(type), shape);
  const View given(*out);
  const bool right = given->contiguous && out->writeable() && Sizes(given->sizes, given->sizes + given->axes) == shape;
  Array wanted;
  wanted.axes = int64_t(shape.size()), wanted.sizes = shape.data();
  check(right && supported("out", given->type) == type, "out must be a writeable, contiguous ", shown(wanted), " of the output's dtype");
  return *out;
}

}  // namespace qk
