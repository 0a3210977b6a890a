// The AMX kernel's own source with tiles in software, so that its indexing is tested on every machine.
#define QK_AMX_EMULATED 1
#include "gemm_s8_32x32_amx.cpp"
