#include "isa.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace qk {
namespace {

constexpr const char* kNames[] = {"scalar", "avx2", "avx512vnni", "amx", "neondot", "amx_emulated"};

#if defined(__x86_64__)
struct Features {
  bool avx2 = false, avx512vnni = false, amx = false;
};

uint64_t enabled_state() {  // XCR0: which registers the operating system saves
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t(high) << 32 | low;
}

// Linux hands out the 8 KB of tile state on request only.
bool request_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

Features detect() {
  Features f;
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return f;
  const bool osxsave = c >> 27 & 1, avx = c >> 28 & 1, fma = c >> 12 & 1, f16c = c >> 29 & 1;
  if (!osxsave || !avx) return f;
  const uint64_t state = enabled_state();
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return f;
  f.avx2 = (state & 0x6) == 0x6 && fma && f16c && (b >> 5 & 1);
  const bool f512 = b >> 16 & 1, dq = b >> 17 & 1, bw = b >> 30 & 1, vl = b >> 31 & 1, vnni = c >> 11 & 1;
  f.avx512vnni = f.avx2 && (state & 0xe6) == 0xe6 && f512 && dq && bw && vl && vnni;
  const bool tile = d >> 24 & 1, int8 = d >> 25 & 1;
  f.amx = f.avx512vnni && (state & 0x60000) == 0x60000 && tile && int8 && request_tiles();
  return f;
}
#endif

}  // namespace

bool is_intel() {
#if defined(__x86_64__)
  static const bool found = [] {
    uint32_t a, b = 0, c, d;
    return __get_cpuid(0, &a, &b, &c, &d) && b == signature_INTEL_ebx;
  }();
  return found;
#else
  return false;
#endif
}

const char* isa_name(Isa isa) { return kNames[int(isa)]; }

bool parse_isa(const char* name, Isa* isa) {
  for (int i = 0; i < kIsaCount; ++i)
    if (std::strcmp(name, kNames[i]) == 0) return *isa = Isa(i), true;
  return false;
}

bool is_for_tests(Isa isa) { return isa == Isa::amx_emulated; }

const char* known_isas() {
  static const std::string all = [] {
    std::string names;
    for (int i = 0; i < kIsaCount; ++i)
      if (!is_for_tests(Isa(i))) names += (names.empty() ? "" : ", ") + std::string(kNames[i]);
    return names;
  }();
  return all.c_str();
}

bool isa_available(Isa isa) {
  if (isa == Isa::scalar || isa == Isa::amx_emulated) return true;
#if defined(__x86_64__)
  static const Features features = detect();
  switch (isa) {
    case Isa::avx2: return features.avx2;
    case Isa::avx512vnni: return features.avx512vnni;
    case Isa::amx: return features.amx;
    default: return false;
  }
#elif defined(__aarch64__) && defined(__linux__)
  static const bool dot = getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
  return isa == Isa::neondot && dot;
#elif defined(__aarch64__) && defined(__APPLE__)
  return isa == Isa::neondot;  // every Apple processor of this family has it
#else
  return false;
#endif
}

static Isa best_up_to(Isa isa) {
  while (!isa_available(isa)) isa = Isa(int(isa) - 1);
  return isa;
}

Isa best_isa() { return best_up_to(Isa::neondot); }

Isa active_isa() {
  static const Isa isa = [] {
    const char* limit = std::getenv("QKERNELS_MAX_ISA");
    if (!limit || !*limit) return best_isa();
    Isa wanted;
    if (!parse_isa(limit, &wanted) || is_for_tests(wanted))
      throw std::invalid_argument("QKERNELS_MAX_ISA='" + std::string(limit) + "' is unknown; choose one of " + known_isas());
    return best_up_to(wanted);
  }();
  return isa;
}

}  // namespace qk
