// What this machine can run, and what QKERNELS_MAX_ISA allows.
#pragma once
#include <cstdint>

namespace qk {

// In order of preference; no machine has both kinds. amx_emulated runs the AMX kernel's source with tiles in software: for tests, by name only.
enum class Isa : uint8_t { scalar, avx2, avx512vnni, amx, neondot, amx_emulated };
constexpr int kIsaCount = 6;

const char* isa_name(Isa isa);
bool parse_isa(const char* name, Isa* isa);
bool is_for_tests(Isa isa);
const char* known_isas();      // "scalar, avx2, ...": all but those for tests, in order of preference
bool isa_available(Isa isa);   // by CPUID, XCR0 and, for AMX, the kernel's permission
Isa best_isa();                // the best available one
Isa active_isa();              // best_isa(), lowered by QKERNELS_MAX_ISA; throws std::invalid_argument on an unknown name
bool is_intel();               // by CPUID; for what plans count, never for what is computed

}  // namespace qk
