// A chained model as one run of bytes: what a saved file holds is what runs, wherever it lies in memory.
//
//   ProgramHeader, ProgramValue[values], ProgramStep[steps], int32 inputs[], int32 outputs[], payloads, names, constants, extra
//
// Offsets count bytes from the start, constants begin at multiples of 64, numbers are little-endian. Batch, height,
// width and tokens are those of the inputs of a call; everything else is fixed here. A step's payload is the struct of
// its kind (cpu/steps). qkernels/program/format.py writes it.
#pragma once
#include "record.h"

namespace qk {

constexpr uint32_t kProgramVersion = 5;
constexpr int32_t kMaxBorder = 255;              // pixels
constexpr int64_t kMaxScanned = 1 << 20;         // places that a cumsum or an argmax goes along: float32 counts them exactly

struct ProgramMagic {
  char bytes[8] = {'q', 'k', 'p', 'r', 'o', 'g', '\r', '\n'};  // a transfer that changes line ends breaks it
  void read(const FieldReader&, const char*) const {}
};
template <> struct FieldFormat<ProgramMagic> { static constexpr const char* format = "S8"; static constexpr double initial = 0; };

// The values that a step reads, in the order of its kind; -1 behind the last.
struct StepReads {
  static constexpr int32_t kMost = 4;
  int32_t value[kMost] = {-1, -1, -1, -1};
  int32_t operator[](int i) const { return value[i]; }
  void read(const FieldReader& reader, const char* field) const {
    for (int32_t v : value) reader.say(reader.to, field, "", double(v));
  }
};
template <> struct FieldFormat<StepReads> { static constexpr const char* format = "(4,)<i4"; static constexpr double initial = -1; };

#define QK_HEADER(F)                                                                         \
  F(ProgramMagic, magic, ProgramMagic())                                                    \
  F(uint32_t, version, kProgramVersion)                                                      \
  F(uint32_t, layout, 0)       /* kLayoutVersion of the packed weights */                    \
  F(int64_t, bytes, 0)         /* of the whole program */                                    \
  F(uint32_t, checksum, 0)     /* CRC-32 of everything behind the header */                  \
  F(int32_t, values, 0) F(int32_t, steps, 0) F(int32_t, inputs, 0) F(int32_t, outputs, 0) F(int32_t, slots, 0) \
  F(int64_t, max_batch, 0)     /* 0: any */                                                  \
  F(int64_t, extra, 0)         /* offset of JSON for people and servers, up to the end; 0: none */
QK_RECORD(ProgramHeader, QK_HEADER);
static_assert(sizeof(ProgramHeader) == 64);

// One tensor between steps: a box of four axes n, h, w, c in the order of memory, c fastest. An image has all of them, tokens
// are [n, h, c], rows are [n, c]; n is the batch of the call times a constant, so that a call can be cut by images.
#define QK_VALUE(F)                                                                          \
  F(int32_t, slot, -1)         /* of the arena; -1: an input or output, whose memory is the caller's */ \
  F(int32_t, channels, 0)      /* 0: known at the call, as the features of a flattened image */ \
  F(uint8_t, rank, 0)          /* 4, 3 or 2 */                                               \
  F(DType, type, DType::f32)   /* f32 or s8; s64 too of an input */                          \
  F(uint8_t, planar, 0)        /* a rank of 4 that lies as [n, c, h, w]; an input or output only */ \
  F(uint8_t, nhwc_only, 0)     /* an input that must come as [n, h, w, c] */                 \
  F(int32_t, border, 0)        /* pixels of zero point on every side of an s8 image, written with it */ \
  F(int32_t, fixed_h, 0) F(int32_t, fixed_w, 0)  /* of an input: the only sizes that it may have; 0: any */
QK_RECORD(ProgramValue, QK_VALUE);
static_assert(sizeof(ProgramValue) == 24);

// One step: what it reads and writes, and where its payload and name lie.
#define QK_STEP_ROW(F)                                                                       \
  F(int32_t, kind, 0)          /* the row of cpu/steps/steps.inc */                          \
  F(int32_t, y, 0)             /* the value that it writes */                                \
  F(StepReads, reads, StepReads())                                                           \
  F(int64_t, payload, 0)       /* offset, a multiple of 8 */                                 \
  F(int32_t, name, 0) F(int32_t, name_bytes, 0)
QK_RECORD(ProgramStep, QK_STEP_ROW);
static_assert(sizeof(ProgramStep) == 40);

}  // namespace qk
