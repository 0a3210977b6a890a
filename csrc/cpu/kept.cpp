#include "kept.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "steps/step.h"

namespace qk {
namespace {

// place(step's number, its bytes, where they begin) for every step; returns the end.
template <class Place>
int64_t for_places(const Program& program, Place place) {
  const int32_t steps = program.header->steps;
  int64_t at = round_up(steps * int64_t(sizeof(KeptPlace)), 64);
  for (int32_t i = 0; i < steps; ++i) {
    const StepType& type = type_of(program.steps[i]);
    const int64_t bytes = type.kept_room ? type.kept_room(program, program.steps[i]) : 0;
    place(i, bytes, bytes ? at : 0);
    at += round_up(bytes, 64);
  }
  return at;
}

}  // namespace

bool keeps_weights() {
  const char* asked = std::getenv("QKERNELS_KEEP_WEIGHTS");
  const std::string name = asked && *asked ? asked : "1";
  if (name != "0" && name != "1") throw std::invalid_argument("QKERNELS_KEEP_WEIGHTS='" + name + "' is unknown; choose one of 0, 1");
  return name == "1";
}

int64_t kept_room(const Program& program) {
  return for_places(program, [](int32_t, int64_t, int64_t) {});
}

void begin_kept(const Program& program, void* kept) {
  for_places(program, [&](int32_t i, int64_t bytes, int64_t at) { static_cast<KeptPlace*>(kept)[i] = {at, bytes, 0, 0}; });
}

bool holds_kept(const Program& program, const void* kept, int64_t bytes) {
  const KeptPlace* places = static_cast<const KeptPlace*>(kept);
  if (bytes < program.header->steps * int64_t(sizeof(KeptPlace))) return false;
  bool same = true;
  const int64_t end = for_places(program, [&](int32_t i, int64_t own, int64_t at) { same &= places[i].at == at && places[i].bytes == own; });
  return same && end == bytes;
}

int64_t kept_bytes(const Program& program) {
  int64_t bytes = 0;
  KeptPlace* places = reinterpret_cast<KeptPlace*>(program.kept);
  for (int32_t i = 0; places && i < program.header->steps; ++i)
    if (places[i].load(&KeptPlace::filled)) bytes += places[i].bytes;
  return bytes;
}

}  // namespace qk
