"""Our reading of single instructions: the emulator agrees with it, and a misreading is named."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from programs import HERE, emulated, planted, run

PROGRAM = "cuda_micro_test"
NVCC = shutil.which("nvcc", path="/usr/local/cuda/bin") or shutil.which("nvcc")


def readings(text: str) -> dict[str, str]:
    return {line.rpartition(": ")[0]: line.rpartition(": ")[2] for line in text.splitlines()}


@pytest.mark.parametrize(("arch", "count"), [(750, 13), (800, 13), (900, 22)])
def test_the_emulator_agrees_with_every_reading(arch: int, count: int, tree: Path) -> None:
    found = readings(run(emulated(tree, PROGRAM, arch))[0])
    assert list(found.values()).count("ok") == count, found


MISREADINGS = {  # in the kernels' half: file, text, what it becomes; the line that is wrong, and one that stays right
    "stride": ("prim_sm90.cuh", "uint64_t(1024 >> 4)", "uint64_t(512 >> 4)", "groups of eight", "swizzle of eight"),
    "swizzle": ("index.h", "chunk ^ (row & 7) :", "chunk :", "swizzle of eight", "product 16x8x32"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISREADINGS)
def test_a_misreading_is_named(name: str, tree: Path) -> None:
    file, text, becomes, wrong, right = MISREADINGS[name]
    with planted(tree, f"csrc/cuda/{file}", text, becomes, PROGRAM, 900) as program:
        done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done
    lines = {
        key: line for line in done.stdout.splitlines() for key in (wrong, right) if key in line
    }
    assert "wrong" in lines[wrong] and lines[right].endswith("ok")


def test_a_ring_that_takes_one_round_for_another_is_stopped(tree: Path) -> None:
    file, text = f"tests/native/{PROGRAM}.cpp", "barrier_wait(filled + s, step / kRingStages % 2)"
    with planted(tree, file, text, "barrier_wait(filled + s, 0)", PROGRAM, 900) as program:
        done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 3 and re.search("race|deadlock", done.stderr), done
    assert "three rounds" not in done.stdout and "announced at a barrier: ok" in done.stdout


@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
def test_the_same_source_compiles_for_a_gpu(tmp_path: Path) -> None:
    flags = ["-std=c++20", "-fmad=false", "--expt-relaxed-constexpr"]
    arch = "-gencode=arch=compute_90a,code=sm_90a"
    sources = [HERE / f"{PROGRAM}.cpp", HERE.parents[1] / "csrc/cuda/tensor_map.cu"]
    command = [NVCC, *flags, arch, "-x", "cu", *sources, "-o", tmp_path / PROGRAM]
    subprocess.run(command, check=True)
