"""The tables in a program's bytes, to be changed in place."""

from __future__ import annotations

from typing import Any

import numpy as np

from qkernels.program.format import checksum, kinds, record


def tables(data: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray]:
    """Its header, values and steps."""
    head, value, step = (record(name).dtype for name in ("header", "value", "step"))
    header = data[: head.itemsize].view(head)[0]
    end = head.itemsize + int(header["values"]) * value.itemsize
    first = (end + 7) // 8 * 8
    steps = data[first : first + int(header["steps"]) * step.itemsize]
    return header, data[head.itemsize : end].view(value), steps.view(step)


def payload(data: np.ndarray, step: int) -> Any:
    """The fields of a step's payload."""
    row = tables(data)[2][step]
    kind = list(kinds().values())[row["kind"]].dtype
    if kind.itemsize == 0:
        return np.zeros((), kind)
    return data[row["payload"] : row["payload"] + kind.itemsize].view(kind)[0]


def tables_end(data: np.ndarray) -> int:
    """Where the payloads end: what lies before is tables, which a forger would change."""
    last = int(tables(data)[0]["steps"]) - 1
    row = tables(data)[2][last]
    return int(row["payload"]) + list(kinds().values())[row["kind"]].dtype.itemsize


def seal(data: np.ndarray) -> None:
    """Make the checksum good again, whatever the header says of the rest."""
    head = record("header").dtype
    data[: head.itemsize].view(head)[0]["checksum"] = checksum(data)
