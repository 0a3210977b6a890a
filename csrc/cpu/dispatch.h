// From an instruction set to its kernels.
#pragma once
#include "kernel.h"

namespace qk {

const Kernels& kernels_of(Isa isa);            // the scalar ones where isa is not compiled in
// The kernels for a problem of M rows: a tile of 32 rows is wasted on a few, so AMX hands those to VNNI.
const Kernels& kernels_for(Isa isa, int64_t m);

}  // namespace qk
