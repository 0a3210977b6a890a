"""The CUDA kernels' own source in the emulator, against the CPU's bytes; and mistakes planted in it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from programs import HERE, build, run

PROBLEMS = 40  # of each kind
FEW = 20  # with a planted fault


class Result(NamedTuple):
    status: int
    hashes: dict[str, str]
    counts: dict[str, int]
    errors: str


def emulate(program: Path, problems: int) -> Result:
    done = subprocess.run(
        [program, str(problems)], capture_output=True, text=True, timeout=300, check=False
    )
    lines = [line.rsplit(" ", 1) for line in done.stdout.splitlines()]
    hashes = {name: value for name, value in lines if name.split()[1].isdigit()}
    counts = {name: int(value) for name, value in lines if name not in hashes}
    return Result(done.returncode, hashes, counts, done.stderr)


@pytest.fixture(scope="module")
def expected(here: Path) -> dict[str, str]:
    """What the CPU kernels return, a hash a problem."""
    lines = run(here, str(PROBLEMS))[0].splitlines()
    return dict(line.rsplit(" ", 1) for line in lines)


KINDS = {  # of problems, by program
    "cuda_linear_test": ["gemm", "weight-only", "quantize"],
    "cuda_conv_test": ["conv2d", "pool2d", "pack"],
    "cuda_lookup_test": ["mean", "lookup"],
}


@pytest.mark.parametrize("program", KINDS)
@pytest.mark.parametrize("arch", [750, 800, 900])
def test_emulated_kernels_return_the_bytes_of_the_cpu(
    arch: int, program: str, expected: dict[str, str], tmp_path: Path
) -> None:
    result = emulate(build(tmp_path, f"ARCH={arch}", "EXTRA=-O1", program=program), PROBLEMS)
    assert result.status == 0, result.errors
    names = {f"{kind} {seed}" for kind in KINDS[program] for seed in range(PROBLEMS)}
    assert names == set(result.hashes)
    assert {k: v for k, v in result.hashes.items() if expected.get(k, v) != v} == {}
    assert all(
        result.counts[f"conflicts {kind}"] == 0 for kind in KINDS[program] if kind != "conv2d"
    )
    kernels = {
        "cuda_linear_test": {750: 11, 800: 14, 900: 15},
        "cuda_conv_test": {750: 15, 800: 26, 900: 27},
        "cuda_lookup_test": dict.fromkeys((750, 800, 900), 3),
    }
    assert result.counts["kernels launched"] == kernels[program][arch], result.errors


def test_index_and_plan_functions(tmp_path: Path) -> None:
    run(build(tmp_path, program="cuda_index_test"))


class Fault(NamedTuple):
    """Text that occurs once in a file of csrc/cuda, what it is replaced by, and what must find it."""

    file: str
    text: str
    becomes: str
    found: str  # an error of the emulator, "wrong" bytes or bank "conflicts"
    arch: int = 800
    program: str = "cuda_linear_test"


BARRIER = "    block_sync();\n    if (tile + T::Stages"
WAIT = """copy_wait<T::Stages - 2>();
    if constexpr (T::LeastArch >= 900) fence_async_proxy();  // what copies wrote, the tensor cores read
    block_sync();"""
FAULTS = {
    "waits for one group too few": Fault("gemm.cuh", "Stages - 2>", "Stages - 1>", "copies"),
    "no barrier between tiles": Fault("gemm.cuh", BARRIER, BARRIER.split("\n")[1], "race"),
    "waits after the barrier": Fault(
        "gemm.cuh", WAIT, "block_sync();\n    copy_wait<T::Stages - 2>();", "race"
    ),
    "sums written while tiles are read": Fault(
        "gemm.cuh", "block_sync();  // the last", "// the last", "race"
    ),
    "sums read before they are written": Fault(
        "gemm.cuh", "  block_sync();\n  if (g.planes)", "  if (g.planes)", "race"
    ),
    "tile loaded over one in use": Fault(
        "gemm.cuh", "load(tile + T::Stages - 1);", "load(tile + T::Stages);", "race|copies"
    ),
    "no commit in the loop": Fault(
        "gemm.cuh",
        "load(tile + T::Stages - 1);\n    copy_commit();",
        "load(tile + T::Stages - 1);",
        "copies",
    ),
    "x not swizzled": Fault("index.h", "chunk ^ (row & 7) :", "chunk :", "conflicts"),
    "w not swizzled": Fault("index.h", "piece ^ (row & 2)", "piece", "conflicts"),
    "sums not swizzled": Fault("index.h", "column ^ (row & 7) * 4", "column", "conflicts"),
    "K read beyond the panel": Fault("gemm.cuh", " && k0 + row * 4 < k_padded", "", "outside"),
    "panels read beyond the last": Fault("gemm.cuh", "p < panels && ", "", "outside"),
    "rows read beyond the last": Fault(
        "sources.cuh", "(r < m ? r : 0) * stride, r < m}", "r * stride, true}", "outside"
    ),
    "K of x read beyond the row": Fault(
        "sources.cuh", "row.exists && at < k;", "row.exists;", "outside"
    ),
    "halves of K exchanged on Turing": Fault(
        "prim.cuh", "mma_8816(c[0], c[1], a[2], b1)", "mma_8816(c[0], c[1], a[1], b1)", "wrong", 750
    ),
    "padding holds 0": Fault(
        "sources.cuh",
        "uint32_t(uint8_t(zero)) * 0x01010101u",
        "0u",
        "wrong",
        program="cuda_conv_test",
    ),
    "sums of a group's weights": Fault(
        "output.cuh", "g.layout.n_padded() - g.layout.n", "0", "wrong", program="cuda_conv_test"
    ),
    "tensor cores read what was not fenced": Fault(
        "gemm.cuh", "fence_async_proxy();", "{}", "without a fence", 900
    ),
    "sums of products not waited for": Fault(
        "products_wgmma.cuh", "wgmma_wait<0>", "wgmma_wait<1>", "under way", 900
    ),
    "descriptor moved too far along K": Fault(
        "products_wgmma.cuh", "rows + k * 2", "rows + k * 4", "another tile", 900
    ),
    "warpgroups read the same rows": Fault(
        "products_wgmma.cuh", "x + first * T::BK", "x", "another tile", 900
    ),
    "table read one value too far": Fault(
        "lookup.cu", "p.table + 128", "p.table + 129", "outside", program="cuda_lookup_test"
    ),
    "pixels added in another order": Fault(
        "pool.cu",
        "+ h * p.x_strides[2] +",
        "+ (p.h - 1 - h) * p.x_strides[2] +",
        "wrong",
        program="cuda_lookup_test",
    ),
    "range read before all warps wrote it": Fault(
        "quantize.cuh", "  block_sync();\n  for (int w", "  for (int w", "race"
    ),
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, to plant faults in; one build folder an architecture is kept between them."""
    tree = tmp_path_factory.mktemp("faults")
    for folder in ("csrc", "tests/native"):
        shutil.copytree(HERE.parents[1] / folder, tree / folder)
    return tree


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_is_found(name: str, tree: Path, expected: dict[str, str]) -> None:
    fault = FAULTS[name]
    file = tree / "csrc/cuda" / fault.file
    original = file.read_text()
    assert original.count(fault.text) == 1, "the fault's text must occur once"
    file.write_text(original.replace(fault.text, fault.becomes))
    try:
        program = build(
            tree / f"build{fault.arch}", f"ARCH={fault.arch}", "EXTRA=-O1", program=fault.program,
            folder=tree / "tests/native",
        )  # fmt: skip
        result = emulate(program, FEW)
    finally:
        file.write_text(original)
    if fault.found == "wrong":
        assert any(expected.get(k, v) != v for k, v in result.hashes.items())
    elif fault.found == "conflicts":
        assert result.counts["conflicts gemm"] > 0
    else:
        assert result.status == 3 and re.search(fault.found, result.errors), result
