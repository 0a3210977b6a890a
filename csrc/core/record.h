// Structs that lie in a file as they lie in memory. A macro lists the fields of each once: the struct is declared from it,
// and so is the table by which `_core` tells Python names, places and defaults (qkernels/program/format.py).
#pragma once
#include <cstddef>
#include <limits>
#include <string_view>
#include <type_traits>

#include "problem.h"

namespace qk {

// Hands a record's values to `say` one by one: what C++ reads in its fields, to be compared with what Python wrote there.
struct FieldReader {
  void* to;
  void (*say)(void* to, const char* field, const char* part, double value);

  template <class T>
  void operator()(const char* field, const T& value) const {
    if constexpr (std::is_enum_v<T> || std::is_arithmetic_v<T>) say(to, field, "", double(value));
    else value.read(*this, field);
  }
};

struct Field {
  const char* name;                // null behind the last field
  const char* format;              // as NumPy writes it; "constant" for a Constant
  int32_t offset;
  double initial;
  const char* const* choices;      // names of an enum's values, null behind the last; null for other types
  bool is_constant;
};

inline constexpr std::string_view kConstant = "constant";

// The place of an array in a program: offset and length in bytes. Both 0: there is none.
struct Constant {
  int64_t at = 0, bytes = 0;
  void read(const FieldReader& reader, const char* field) const {
    reader.say(reader.to, field, "at", double(at));
    reader.say(reader.to, field, "bytes", double(bytes));
  }
};
template <class T> struct FieldFormat;
template <> struct FieldFormat<uint8_t> { static constexpr const char* format = "u1"; };
template <> struct FieldFormat<int32_t> { static constexpr const char* format = "<i4"; };
template <> struct FieldFormat<uint32_t> { static constexpr const char* format = "<u4"; };
template <> struct FieldFormat<int64_t> { static constexpr const char* format = "<i8"; };
template <> struct FieldFormat<uint64_t> { static constexpr const char* format = "<u8"; };
template <> struct FieldFormat<Constant> { static constexpr const char* format = kConstant.data(); static constexpr double initial = 0; };
template <> struct FieldFormat<float> { static constexpr const char* format = "<f4"; };
template <> struct FieldFormat<double> { static constexpr const char* format = "<f8"; };

// Eight numbers, of which a payload uses the first few.
template <int32_t kInitial>
struct Eight {
  static constexpr int32_t kMost = 8;
  int32_t value[kMost] = {kInitial, kInitial, kInitial, kInitial, kInitial, kInitial, kInitial, kInitial};
  int32_t operator[](int i) const { return value[i]; }
  void read(const FieldReader& reader, const char* field) const {
    static constexpr const char* parts[kMost] = {"0", "1", "2", "3", "4", "5", "6", "7"};
    for (int i = 0; i < kMost; ++i) reader.say(reader.to, field, parts[i], double(value[i]));
  }
};
template <int32_t kInitial> struct FieldFormat<Eight<kInitial>> {
  static constexpr const char* format = "(8,)<i4";
  static constexpr double initial = kInitial;
};

inline const char* const* choices_of(DType) { return kDTypeNames; }
inline const char* const* choices_of(Range) { return kRangeNames; }
inline const char* const* choices_of(PadMode) { return kPadModeNames; }
inline const char* const* choices_of(Function) { return kFunctionNames; }
inline const char* const* choices_of(BinaryOp) { return kBinaryOpNames; }

template <class T>
Field field(const char* name, size_t offset, T initial) {
  if constexpr (std::is_enum_v<T>)
    return {name, FieldFormat<std::underlying_type_t<T>>::format, int32_t(offset), double(initial), choices_of(initial), false};
  else if constexpr (std::is_arithmetic_v<T>)
    return {name, FieldFormat<T>::format, int32_t(offset), double(initial), nullptr, false};
  else
    return {name, FieldFormat<T>::format, int32_t(offset), FieldFormat<T>::initial, nullptr, std::string_view(FieldFormat<T>::format) == kConstant};
}

// LIST(F) calls F(type, name, initial) for each field, in order. No field: the struct has no bytes in a file.
#define QK_RECORD_MEMBER(type, name, initial) type name = initial;
#define QK_RECORD_READ(type, name, initial) reader(#name, self.name);
#define QK_RECORD_FIELD(type, name, initial) field<type>(#name, offsetof(Self, name), initial),
#define QK_RECORD(Name, LIST)                                                                \
  struct Name {                                                                              \
    using Self = Name;                                                                       \
    LIST(QK_RECORD_MEMBER)                                                                   \
    static void read([[maybe_unused]] const void* bytes, [[maybe_unused]] const FieldReader& reader) { \
      [[maybe_unused]] const Self& self = *static_cast<const Self*>(bytes);                  \
      LIST(QK_RECORD_READ)                                                                   \
    }                                                                                        \
    static const Field* fields() {                                                           \
      static const Field rows[] = {LIST(QK_RECORD_FIELD) Field{}};                           \
      return rows;                                                                           \
    }                                                                                        \
  };                                                                                         \
  static_assert(std::is_trivially_copyable_v<Name> && alignof(Name) <= 8)

template <class Record>
constexpr int32_t kBytesOf = std::is_empty_v<Record> ? 0 : int32_t(sizeof(Record));

}  // namespace qk
