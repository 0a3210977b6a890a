"""The CUDA kernels' own source in the emulator, against the CPU's bytes; and mistakes planted in it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from programs import build, emulated, planted, run

PROBLEMS = 40  # of each kind
LARGE = 4  # of LARGE_KINDS
FEW, FEW_LARGE = 20, 2  # with a planted fault


class Result(NamedTuple):
    status: int
    hashes: dict[str, str]
    counts: dict[str, int]
    errors: str


def emulate(program: Path, problems: int, *kind: str) -> Result:
    command = [program, str(problems), *kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    lines = [line.rsplit(" ", 1) for line in done.stdout.splitlines()]
    hashes = {name: value for name, value in lines if name.split()[1].isdigit()}
    counts = {name: int(value) for name, value in lines if name not in hashes}
    return Result(done.returncode, hashes, counts, done.stderr)


@pytest.fixture(scope="module")
def expected(here: Path) -> dict[str, str]:
    """What the CPU kernels return, a hash a problem."""
    lines = run(here, str(PROBLEMS))[0].splitlines()
    return dict(line.rsplit(" ", 1) for line in lines)


def differing(result: Result, expected: dict[str, str]) -> set[str]:
    """Problems whose bytes are not the CPU's; packing compares its own."""
    hashes = result.hashes.items()
    return {name for name, h in hashes if not name.startswith("pack ") and h != expected[name]}


KINDS = {  # of problems, by program
    "cuda_linear_test": ["gemm", "weight-only", "quantize", "deep"],
    "cuda_conv_test": ["conv2d", "pool2d", "pack", "deep-conv2d"],
    "cuda_lookup_test": ["mean", "lookup"],
}
LARGE_KINDS = ("deep", "deep-conv2d", "tiles")


@pytest.mark.slow
@pytest.mark.parametrize("program", KINDS)
@pytest.mark.parametrize("arch", [750, 800, 900])
def test_emulated_kernels_return_the_bytes_of_the_cpu(
    arch: int, program: str, tree: Path, expected: dict[str, str]
) -> None:
    result = emulate(emulated(tree, program, arch), PROBLEMS)
    assert result.status == 0, result.errors
    hopper = ["tiles"] if (program, arch) == ("cuda_linear_test", 900) else []
    kinds = KINDS[program] + hopper
    counts = {kind: LARGE if kind in LARGE_KINDS else PROBLEMS for kind in kinds}
    assert set(result.hashes) == {
        f"{kind} {seed}" for kind in kinds for seed in range(counts[kind])
    }
    assert not differing(result, expected)
    assert all(result.counts[f"conflicts {kind}"] == 0 for kind in kinds if "conv2d" not in kind)
    kernels = {
        "cuda_linear_test": {750: 13, 800: 16, 900: 17},
        "cuda_conv_test": {750: 17, 800: 28, 900: 30},
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
    kind: str = ""  # of problems, where one is enough


def rows(file: str, text: str, becomes: str, found: str) -> Fault:
    """In the Hopper kernel over rows."""
    return Fault(file, text, becomes, found, 900, kind="tiles")


def windows(file: str, text: str, becomes: str, found: str) -> Fault:
    """In the Hopper kernel over windows of an image."""
    return Fault(file, text, becomes, found, 900, "cuda_conv_test", "deep-conv2d")


def split(file: str, text: str, becomes: str, found: str) -> Fault:
    return Fault(file, text, becomes, found, kind="deep")


BARRIER = "    block_sync();\n    if (tile + T::Stages"
WAIT = "copy_wait<T::Stages - 2>();\n    block_sync();"
ADD = "products.add(ring.x(), ring.w());\n"
FREE = "      warp_sync();\n      if (lane_index() == 0) barrier_arrive(ring.freed());\n"
EXPECT = "barrier_expect(ring.filled(), Hopper::x_bytes + Hopper::w_bytes)"
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
        "gemm.cuh", "  block_sync();\n  if (g.splits", "  if (g.splits", "race"
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
    "x not swizzled": Fault("index.h", "chunk ^ (row & 7) :", "chunk :", "conflicts", kind="gemm"),
    "w not swizzled": Fault("index.h", "piece ^ (row & 2)", "piece", "conflicts", kind="gemm"),
    "sums not swizzled": Fault(
        "index.h", "column ^ (row & 7) * 4", "column", "conflicts", kind="gemm"
    ),
    "K read beyond the panel": Fault("gemm.cuh", " && k0 + row * 4 < k_padded", "", "outside"),
    "panels read beyond the last": Fault("gemm.cuh", "p < panels && ", "", "outside"),
    "rows read beyond the last": Fault(
        "sources.cuh", "(r < m ? r : 0) * stride, r < m}", "r * stride, true}", "outside"
    ),
    "K of x read beyond the row": Fault(
        "sources.cuh", "row.exists && at < k;", "row.exists;", "outside"
    ),
    "halves of K exchanged on Turing": Fault(
        "prim.cuh",
        "mma_8816(c[0], c[1], a[2], b1)",
        "mma_8816(c[0], c[1], a[1], b1)",
        "wrong",
        750,
        kind="gemm",
    ),
    "padding holds 0": Fault(
        "sources.cuh",
        "uint32_t(uint8_t(zero)) * 0x01010101u",
        "0u",
        "wrong",
        program="cuda_conv_test",
        kind="conv2d",
    ),
    "sums of a group's weights": Fault(
        "output.cuh",
        "g.layout.n_padded() - g.layout.n",
        "0",
        "wrong",
        program="cuda_conv_test",
        kind="conv2d",
    ),
    "a split without its last tile of K": split(
        "gemm.cuh",
        "tiles * int(split) / int(g.splits)",
        "tiles / int(g.splits) * int(split)",
        "wrong",
    ),
    "splits in one place": split(
        "output.cuh", "(split * g.layout.groups + block_z())", "block_z()", "wrong"
    ),
    "sums of rows for planes": Fault(
        "split.cu",
        "g.planes ? along : across",
        "across",
        "wrong",
        program="cuda_conv_test",
        kind="deep-conv2d",
    ),
    "stage freed before its products are done": rows(
        "gemm_hopper.cuh", f"      {ADD}{FREE}", f"{FREE}      {ADD}", "race"
    ),
    "stage freed by one lane without its warp": rows(
        "gemm_hopper.cuh", "      warp_sync();\n", "", "race"
    ),
    "stage filled before it is free": rows(
        "feeds.cuh", f"ring.wait_freed();\n        {EXPECT}", EXPECT, "race|more arrivals"
    ),
    "stage read before it is filled": rows(
        "gemm_hopper.cuh", "ring.wait_filled();", "", "race|nobody wrote"
    ),
    "wrong parity of filled": rows(
        "hopper.cuh",
        "barrier_wait(filled(), parity)",
        "barrier_wait(filled(), parity ^ 1)",
        "race|nobody wrote",
    ),
    "wrong parity of freed": rows(
        "hopper.cuh",
        "barrier_wait(freed(), parity ^ 1)",
        "barrier_wait(freed(), parity)",
        "deadlock",
    ),
    "bytes not expected": rows("feeds.cuh", EXPECT, "barrier_arrive(ring.filled())", "race|nobody"),
    "bytes of the weight not expected": rows(
        "feeds.cuh", EXPECT, EXPECT.replace(" + Hopper::w_bytes", ""), "race|nobody expected"
    ),
    "more bytes expected than come": rows(
        "feeds.cuh", EXPECT, EXPECT.replace("w_bytes", "stage_bytes"), "deadlock"
    ),
    "arrivals of half of the consumers": rows(
        "gemm_hopper.cuh",
        "Hopper::consumers / 32)",
        "Hopper::consumers / 64)",
        "race|deadlock",
    ),
    "barriers not fenced": rows("hopper.cuh", "    barrier_fence();\n", "", "not fenced"),
    "rows of the first tile in every one": rows("feeds.cuh", "k0, int(m0))", "k0, 0)", "wrong"),
    "every other tile left out": rows(
        "hopper.cuh", "tile += blocks_x()", "tile += 2 * blocks_x()", "wrong"
    ),
    "descriptor moved too far along K": rows(
        "products_wgmma.cuh", "rows + k * 2", "rows + k * 4", "wrong"
    ),
    "descriptor of another swizzle": rows(
        "prim_sm90.cuh", "uint64_t(1) << 62", "uint64_t(2) << 62", "128-byte swizzle"
    ),
    "warpgroups read the same rows": rows("products_wgmma.cuh", "x + first * T::BK", "x", "wrong"),
    "w read without the engine's swizzle": rows(
        "index.h", "return at ^ (at >> 7 & 7) << 4;", "return at;", "wrong"
    ),
    "neighbouring pieces of w": rows(
        "index.h", "(group & 1) * 2 + (group >> 1 & 1)", "group % 4", "conflicts"
    ),
    "products not waited for": rows(
        "products_wgmma.cuh", "wgmma_wait<0>", "wgmma_wait<1>", "race|under way"
    ),
    "scale of another row": Fault(
        "rows_end.cuh",
        "g.scales.quotient(p.m + uint32_t(offset(i)))",
        "g.scales.quotient(p.m)",
        "wrong",
        750,
    ),
    "more registers claimed than were released": windows(
        "gemm_hopper.cuh",
        "registers_claim<Feed::consumer_registers>",
        "registers_claim<Feed::consumer_registers + 8>",
        "deadlock",
    ),
    "products without a fence of their registers": rows(
        "products_wgmma.cuh", "    wgmma_fence();\n", "", "registers that were not fenced"
    ),
    "a tile of later architectures on Turing": Fault(
        "plan.h", "device.arch < 80", "device.arch < 75", "not made for 750", 750
    ),
    "an image of width 1 read as planes": Fault(
        "conv2d.cu",
        "return lies_as_pixels(sizes, p.x_strides);",
        "return lies_as_pixels(sizes, p.x_strides) && p.x_strides[3] == p.c;",
        "wrong",
        program="cuda_conv_test",
        kind="conv2d",
    ),
    "windows not fenced for the tensor cores": windows(
        "feeds.cuh", "fence_async_proxy();", "", "without a fence"
    ),
    "windows announced before they landed": windows(
        "feeds.cuh", "copy_wait<Later>", "copy_wait<Later + 1>", "race|without a fence|nobody wrote"
    ),
    "windows announced a stage too late": windows(
        "feeds.cuh", "under_way < ahead", "under_way < Hopper::Stages", "deadlock"
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


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_is_found(name: str, tree: Path, expected: dict[str, str]) -> None:
    fault = FAULTS[name]
    file = f"csrc/cuda/{fault.file}"
    with planted(tree, file, fault.text, fault.becomes, fault.program, fault.arch) as program:
        few = FEW_LARGE if fault.kind in LARGE_KINDS else FEW
        result = emulate(program, few, *fault.kind.split())
    if fault.found == "wrong":
        assert differing(result, expected)
    elif fault.found == "conflicts":
        assert result.counts[f"conflicts {fault.kind}"] > 0
    else:
        assert result.status == 3 and re.search(fault.found, result.errors), result
