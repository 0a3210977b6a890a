#include "array.h"

namespace qk {

std::string shown(const Array& a) {
  std::string text = "[";
  for (int64_t i = 0; i < a.axes; ++i) text += (i ? ", " : "") + std::to_string(a.sizes[i]);
  return text + "]";
}

std::string shown(const Place& place) {
  return place.kind == Place::cpu ? "the CPU" : (place.kind == Place::cuda ? "cuda:" : "device ") + std::to_string(place.index);
}

DType supported(const char* what, const Type& type) {
  switch (type.element) {
    case Element::f32: return DType::f32;
    case Element::f16: return DType::f16;
    case Element::bf16: return DType::bf16;
    case Element::s8: return DType::s8;
    default: refuse<TypeRefusal>(what, " is ", type.name, "; float32, float16, bfloat16 and int8 are supported");
  }
}

}  // namespace qk
