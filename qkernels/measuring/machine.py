"""What a figure was measured on, and what this installation can do."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import qkernels
from qkernels import ops
from qkernels.utils.cores import usable_cores

PACKAGES = ("torch", "numpy", "accelerate", "safetensors")


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch and the kernels use so many threads inside, and as many as before after it.

    Raises:
        ValueError: ``count`` is below 1.
    """
    if count < 1:
        raise ValueError(f"threads={count} must be at least 1")
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def describe_machine() -> dict[str, Any]:
    """JSON-able: cpu, cores, threads, isa, isa_limit, cuda, system and versions by package.

    `cores` are those this process may use, `threads` those of torch and of the kernels, `isa_limit`
    the value of QKERNELS_MAX_ISA or None, `cuda` whether the CUDA half of the operators is built.
    """
    return {
        "cpu": _cpu_name(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "isa": ops.cpu_isa(),
        "isa_limit": os.environ.get("QKERNELS_MAX_ISA") or None,
        "cuda": cuda_built(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": _versions(),
    }


def cuda_built() -> bool:
    """Whether the operators have CUDA implementations in this build."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return has_kernel("qkernels::linear", "CUDA")


def describe_cuda() -> str:
    """Whether CUDA kernels are built, what they would run on, and how far they are proven."""
    if not cuda_built():
        return "not in this build"
    there = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU here"
    return f"built in ({there}); proven in emulation, no speed measured yet"


def _versions() -> dict[str, str]:
    found = {"qkernels": qkernels.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
