"""CUTLASS with vLLM's int8 tile table for Hopper: built beside the benchmark, never a part of the package.

pip install --no-deps nvidia-cutlass; python benchmarks/cuda/cutlass_peer.py [FOLDER]

builds FOLDER/libcutlass_s8.so with nvcc for compute capability 9.0; no GPU is needed, but about a minute and 4 GB of
memory a tile. `run_all.py` takes it from build/cuda, where the headers need not be any more.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).with_name("cutlass_s8.cu")
LIBRARY = "libcutlass_s8.so"


class Tile(NamedTuple):
    tile_m: int
    tile_n: int
    tile_k: int
    cluster_m: int
    cluster_n: int
    pingpong: bool


TILES = {  # vLLM's cutlass_gemm_sm90_int8_dispatch
    "cutlass_s8_m32_small_n": Tile(64, 64, 256, 1, 8, False),
    "cutlass_s8_m32_big_n": Tile(64, 128, 256, 1, 4, False),
    "cutlass_s8_m64": Tile(64, 64, 256, 1, 1, False),
    "cutlass_s8_m128": Tile(64, 128, 128, 2, 1, True),
    "cutlass_s8_default": Tile(128, 128, 128, 2, 1, True),
}


def tile_of(m: int, n: int) -> str:
    """The tile that vLLM takes for M and N."""
    if m <= 32:
        return "cutlass_s8_m32_small_n" if n < 8192 else "cutlass_s8_m32_big_n"
    return "cutlass_s8_m64" if m <= 64 else "cutlass_s8_m128" if m <= 128 else "cutlass_s8_default"


class Unavailable(Exception):
    """The peer cannot be built or loaded here; the message is the reason."""


def headers() -> list[Path]:
    found = importlib.util.find_spec("cutlass_library")
    if found is None or not found.submodule_search_locations:
        raise Unavailable("CUTLASS's headers are not here (pip install --no-deps nvidia-cutlass)")
    source = Path(next(iter(found.submodule_search_locations))) / "source"
    return [source / "include", source / "tools/util/include"]


def build(folder: Path) -> Path:
    """FOLDER/libcutlass_s8.so; objects that are there already are not built again."""
    library = folder / LIBRARY
    if library.exists():
        return library
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        raise Unavailable("nvcc is not here")
    include = [f"-I{path}" for path in headers()]
    folder.mkdir(parents=True, exist_ok=True)
    flags = ["-std=c++17", "-O3", "-DNDEBUG", "--expt-relaxed-constexpr", "-Xcompiler", "-fPIC"]
    arch = "-gencode=arch=compute_90a,code=sm_90a"

    def compiled(name: str) -> Path:
        target, aside = folder / f"{name}.o", folder / f"{name}.part.o"
        if not target.exists():
            values = TILES[name]._asdict()
            defines = [f"-DNAME={name}", *(f"-D{k.upper()}={int(v)}" for k, v in values.items())]
            command = [nvcc, *flags, arch, *include, *defines, "-c", str(SOURCE), "-o", str(aside)]
            subprocess.run(command, check=True)
            aside.rename(target)
        return target

    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", "0")) or os.cpu_count()) as pool:
        objects = list(pool.map(compiled, TILES))
    subprocess.run(
        [nvcc, "-shared", "-cudart", "static", arch, *map(str, objects), "-o", str(library)],
        check=True,
    )
    return library


Product = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def load(folder: Path) -> Product:
    """(x [M, K], weight [N, K], scale [M], weight_scale [N]) -> bfloat16 [M, N], on the current stream."""
    library = ctypes.CDLL(str(build(folder)))
    pointers, sizes = [ctypes.c_void_p] * 5, [ctypes.c_int] * 3
    for name in TILES:
        getattr(library, name).argtypes = [*pointers, *sizes, ctypes.c_void_p]

    def product(x: Tensor, weight: Tensor, scale: Tensor, weight_scale: Tensor) -> Tensor:
        (m, k), n = x.shape, len(weight)
        y = x.new_empty((m, n), dtype=torch.bfloat16)
        tensors = [t.data_ptr() for t in (x, weight, scale, weight_scale, y)]
        stream = torch.cuda.current_stream(x.device).cuda_stream
        error = getattr(library, tile_of(m, n))(*tensors, m, n, k, stream)
        if error:
            raise RuntimeError(f"CUTLASS status {error} for {m}x{n}x{k}")
        return y

    return product


if __name__ == "__main__":
    print(build(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build/cuda"))
