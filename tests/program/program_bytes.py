"""The tables in a program's bytes, to be changed in place."""

from __future__ import annotations

from typing import Any

import numpy as np

from qkernels.program.format import HEADER, STEP, VALUE, checksum


def tables(data: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray]:
    """Its header, values and steps."""
    header = data[: HEADER.itemsize].view(HEADER)[0]
    end = HEADER.itemsize + int(header["values"]) * VALUE.itemsize
    first = (end + 7) // 8 * 8
    steps = data[first : first + int(header["steps"]) * STEP.itemsize]
    return header, data[HEADER.itemsize : end].view(VALUE), steps.view(STEP)


def seal(data: np.ndarray) -> None:
    """Make the checksum good again, whatever the header says of the rest."""
    data[: HEADER.itemsize].view(HEADER)[0]["checksum"] = checksum(data)
