"""Bytes that begin at cache lines, where NumPy's own begin 16 bytes into one: a load that crosses lines costs two."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qkernels.program import kernel_core


def zeros(count: int) -> NDArray[np.uint8]:
    memory = np.zeros(count + kernel_core.ALIGNMENT - 1, np.uint8)
    begin = -memory.ctypes.data % kernel_core.ALIGNMENT
    return memory[begin : begin + count]


def at_line(data: NDArray[Any]) -> NDArray[Any]:
    """``data`` itself where it begins at a cache line, as files that are mapped do; else a copy that does."""
    if data.ctypes.data % kernel_core.ALIGNMENT == 0:
        return data
    moved = zeros(data.nbytes)
    moved[:] = np.ascontiguousarray(data).view(np.uint8).reshape(-1)
    return moved
