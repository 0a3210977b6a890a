// The tiles that are compiled, and a launch of one by its name.
#pragma once
#include <cmath>

#include "gemm.cuh"
#include "plan.h"
#include "sources.cuh"
#include "split.cuh"

namespace qk::cuda {

//                    BM   BN   BK   a warp's  stages
using Turing = Tile<  64,  64,  64,  32,  32,  2, 750>;
using Small  = Tile<  32,  64, 128,  16,  32,  4, 800>;
using Medium = Tile<  64, 128, 128,  32,  64,  3, 800>;
using Tall   = Tile< 128,  64,  64,  64,  32,  4, 800>;
using Large  = Tile< 128, 128,  64,  64,  64,  4, 800>;

template <class T>
constexpr bool has_shape(TileName name) { return kTileShapes[int(name)].rows == T::BM && kTileShapes[int(name)].channels == T::BN; }
static_assert(has_shape<Turing>(TileName::turing) && has_shape<Small>(TileName::small) && has_shape<Medium>(TileName::medium) &&
              has_shape<Tall>(TileName::tall) && has_shape<Large>(TileName::large));

template <class T, class Source>
int launch_tile(GemmArgs g, const Source& source, Stream stream) {
  g.raster = {ceil_div(g.m, T::BM), ceil_div(g.layout.n, T::BN)};
  const Grid grid{g.raster.m_tiles * g.raster.n_tiles, g.splits, g.layout.groups};
  if (const int error = launch<gemm_kernel<T, Source>>(grid, T::threads, shared_bytes<T>(), stream, g, source)) return error;
  return g.splits > 1 ? add_splits(g, stream) : 0;
}

template <class Source>
int launch_any_tile(TileName tile, const GemmArgs& g, const Source& source, Stream stream) {
  switch (tile) {
    case TileName::turing: return launch_tile<Turing>(g, source, stream);
    case TileName::small: return launch_tile<Small>(g, source, stream);
    case TileName::medium: return launch_tile<Medium>(g, source, stream);
    case TileName::tall: return launch_tile<Tall>(g, source, stream);
    default: break;
  }
  if constexpr (Source::large_tiles) return launch_tile<Large>(g, source, stream);
  else return launch_tile<Medium>(g, source, stream);
}

// One a file, in launch_*.cu, so that they compile side by side; Hopper's apart.
int launch_hopper(const Plan& plan, const GemmArgs& g, const Rows& source, Stream stream);
int launch_hopper(const Plan& plan, const GemmArgs& g, const Windows<16>& source, Stream stream);
int launch_gemm(const Plan& plan, const GemmArgs& g, const Rows& source, Stream stream);
int launch_gemm(const Plan& plan, const GemmArgs& g, const Windows<16>& source, Stream stream);
int launch_gemm(const Plan& plan, const GemmArgs& g, const Windows<4>& source, Stream stream);
int launch_gemm(const Plan& plan, const GemmArgs& g, const AnyWindows& source, Stream stream);

// Whether neighbours can be touched four at a time.
inline bool takes_vectors(const GemmArgs& g) {
  const Epilogue& e = g.epilogue;
  const auto aligned = [](const void* p, int64_t bytes) { return reinterpret_cast<uintptr_t>(p) % uintptr_t(bytes) == 0; };
  const bool zero_orders = (e.lo == 0 && std::signbit(e.lo)) || e.hi == 0;  // a bound that the hardware orders its own way
  return !zero_orders && g.layout.n % 4 == 0 && g.c_stride % 4 == 0 && aligned(g.c, 4 * size_of(e.out_type)) && aligned(e.w_scale, 16) &&
         aligned(e.bias, 16) && aligned(e.w_sum, 16) &&
         (!e.residual || (e.residual_stride % 4 == 0 && aligned(e.residual, 4 * size_of(e.residual_type))));
}

// What follows from the rest, once everything is known.
inline void complete(GemmArgs& g) {
  g.vectors = takes_vectors(g);
  g.scales = Divisor(g.epilogue.rows_per_scale);
}

}  // namespace qk::cuda
