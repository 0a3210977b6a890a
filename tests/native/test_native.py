"""The torch-free half as a plain C++ program: here, and for AArch64 under emulation."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from programs import build, run

pytestmark = pytest.mark.slow


def test_every_instruction_set_equals_plain_cpp_on_one_two_and_three_threads(here: Path) -> None:
    hashes, summary = run(here, "60")
    assert len(hashes.splitlines()) == 732
    assert "0 differ" in summary and "scalar" in summary


def test_neon_equals_x86_byte_for_byte_under_emulation(here: Path, tmp_path: Path) -> None:
    for tool in ("aarch64-linux-gnu-g++", "aarch64-linux-gnu-objdump", "qemu-aarch64"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed (Debian: g++-aarch64-linux-gnu, qemu-user)")
    arm = build(tmp_path, "CXX=aarch64-linux-gnu-g++", "MACHINE=aarch64", "LINK=-static")
    hashes, summary = run("qemu-aarch64", "-cpu", "max", arm, "20")
    assert "neondot" in summary
    assert hashes == run(here, "20")[0]
    kernel = tmp_path / "kernels" / "gemm_s8_6x16_neondot.o"
    code = subprocess.run(
        ["aarch64-linux-gnu-objdump", "-d", kernel], capture_output=True, text=True, check=True
    )
    assert code.stdout.count("sdot") >= 24  # a whole tile's
