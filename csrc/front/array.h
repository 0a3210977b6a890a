// The caller's arrays, whoever owns them: what a front end tells of a tensor or a NumPy array.
#pragma once
#include <string>

#include "../core/problem.h"
#include "refusal.h"

namespace qk {

enum class Element : uint8_t { f32, f16, bf16, s8, i32, s64, other };

struct Type {
  Element element = Element::f32;
  const char* name = "float32";  // for sentences
};

struct Place {
  enum Kind : uint8_t { cpu, cuda, other } kind = cpu;
  int32_t index = -1;
  bool operator==(const Place&) const = default;
};

struct Array {
  const void* data = nullptr;
  Type type;
  int64_t axes = 0;
  const int64_t* sizes = nullptr;        // [axes]
  int64_t strides[4] = {0, 0, 0, 0};     // elements; filled up to four axes
  bool contiguous = true;
  Place place;

  bool on_cpu() const { return place.kind == Place::cpu; }  // its values may be looked at without waiting
  int64_t count() const {
    int64_t n = 1;
    for (int64_t i = 0; i < axes; ++i) n *= sizes[i];
    return n;
  }
  int64_t last() const { return sizes[axes - 1]; }
  template <class T>
  const T* as() const { return static_cast<const T*>(data); }
};

std::string shown(const Array& a);       // [2, 3]
std::string shown(const Place& place);   // the CPU, cuda:0

// The dtype of values that kernels read or write.
DType supported(const char* what, const Type& type);

inline bool lies_as_pixels(const Array& image) { return lies_as_pixels(image.sizes, image.strides); }

// Strides of a contiguous array of up to four axes.
inline void set_contiguous_strides(Array& a) {
  if (a.axes > 4) return;
  for (int64_t i = a.axes, step = 1; i-- > 0; step *= a.sizes[i] > 1 ? a.sizes[i] : 1) a.strides[i] = step;
}

}  // namespace qk
