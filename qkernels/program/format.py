"""The bytes of a program, as csrc/core/program.h reads them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qkernels.program import kernel_core

MAGIC = b"qkprog\r\n"
KINDS = (
    "conv2d", "linear", "max_pool", "mean", "copy", "planar", "lookup", "layer_norm", "attention",
)  # fmt: skip
TYPES = {"float32": 0, "int8": 3}
RANGES = ("given", "dynamic_symmetric", "dynamic_asymmetric")
PAD_MODES = ("zeros", "reflect", "replicate", "circular")
_SIDES = ("top", "bottom", "left", "right")
_MOST_BORDER = 255

HEADER = np.dtype(
    [
        ("magic", "S8"), ("version", "<u4"), ("layout", "<u4"), ("bytes", "<i8"), ("checksum", "<u4"),
        ("values", "<i4"), ("steps", "<i4"), ("inputs", "<i4"), ("outputs", "<i4"), ("slots", "<i4"),
        ("max_batch", "<i8"), ("extra", "<i8"),
    ]
)  # fmt: skip
VALUE = np.dtype(
    [
        ("slot", "<i4"), ("channels", "<i4"), ("rank", "u1"), ("type", "u1"), ("planar", "u1"), ("nhwc_only", "u1"),
        ("border", "<i4"),
    ]
)  # fmt: skip
_STEP_INTS = (
    "kind", "x", "residual", "y", "name", "name_bytes", "oc", "kh", "kw", "groups", "stride_h", "stride_w",
    "dilation_h", "dilation_w", "pad_top", "pad_bottom", "pad_left", "pad_right", "pad_mode", "ceil_mode", "channel",
    "fill", "range",
)  # fmt: skip
STEP = np.dtype(
    [(name, "<i4") for name in _STEP_INTS]
    + [
        ("x_scale", "<f4"), ("x_zero", "<i4"), ("residual_scale", "<f4"), ("residual_zero", "<i4"), ("lo", "<f4"),
        ("hi", "<f4"), ("out_inv_scale", "<f4"), ("out_zero", "<i4"), ("parameter", "<f4"), ("weight", "<i8"),
        ("weight_bytes", "<i8"), ("w_scale", "<i8"), ("bias", "<i8"),
    ]
)  # fmt: skip
_DEFAULTS: dict[str, Any] = {
    "residual": -1, "kh": 1, "kw": 1, "groups": 1, "stride_h": 1, "stride_w": 1, "dilation_h": 1, "dilation_w": 1,
    "x_scale": 1.0, "residual_scale": 1.0, "lo": -np.inf, "hi": np.inf, "out_inv_scale": 1.0,
}  # fmt: skip


@dataclass
class Value:
    """One tensor between steps. ``size``: its bytes for one example, by which slots are shared out."""

    channels: int  # 0: features of a flattened image
    rank: int
    dtype: str
    size: int = 0
    callers: bool = False  # an input or output
    planar: bool = False
    nhwc_only: bool = False
    border: int = 0  # pixels of zero point around an image


@dataclass
class Step:
    """One step; ``fields`` are those of the C++ struct that differ from their defaults."""

    kind: str
    name: str
    x: int
    y: int
    residual: int = -1
    fields: dict[str, Any] = field(default_factory=dict)
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)  # weight, w_scale, bias


def assemble(
    values: Sequence[Value],
    steps: Sequence[Step],
    inputs: Sequence[int],
    outputs: Sequence[int],
    max_batch: int | None = None,
) -> NDArray[np.uint8]:
    """The program as bytes. Equal constant arrays (the same object) are held once."""
    table = np.zeros(len(steps), STEP)
    _give_borders(values, steps)
    slots = _share_slots(values, steps)
    used = HEADER.itemsize + _up(len(values) * VALUE.itemsize, 8) + table.nbytes
    used += 4 * (len(inputs) + len(outputs))
    names = [step.name.encode() for step in steps]
    for row, step, name in zip(table, steps, names, strict=True):
        row["kind"], row["x"], row["y"] = KINDS.index(step.kind), step.x, step.y
        for key, value in (_DEFAULTS | step.fields | {"residual": step.residual}).items():
            row[key] = value
        row["name"], row["name_bytes"] = used, len(name)
        used += len(name)
    places: dict[int, int] = {}
    constants: list[tuple[int, NDArray[Any]]] = []
    for row, step in zip(table, steps, strict=True):
        for key, array in step.constants.items():
            if id(array) not in places:
                places[id(array)] = used = _up(used, 64)
                constants.append((used, array))
                used += array.nbytes
            row[key] = places[id(array)]
        if "weight" in step.constants:
            row["weight_bytes"] = step.constants["weight"].nbytes

    data = np.zeros(_up(used, 64), np.uint8)
    header = _header(data)
    counts = (len(values), len(steps), len(inputs), len(outputs), max(slots, default=-1) + 1)
    header["magic"], header["version"] = MAGIC, kernel_core.PROGRAM_VERSION
    header["layout"], header["bytes"] = kernel_core.LAYOUT_VERSION, data.nbytes
    for key, count in zip(("values", "steps", "inputs", "outputs", "slots"), counts, strict=True):
        header[key] = count
    header["max_batch"] = max_batch or 0
    _write_tables(data, values, slots, table, inputs, outputs)
    for row, name in zip(table, names, strict=True):
        data[row["name"] : row["name"] + len(name)] = np.frombuffer(name, np.uint8)
    for at, array in constants:
        data[at : at + array.nbytes] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
    header["checksum"] = checksum(data)
    return data


def checksum(data: NDArray[np.uint8]) -> int:
    """CRC-32 of everything behind the header."""
    return zlib.crc32(data[HEADER.itemsize :].data)


def stored_checksum(data: NDArray[np.uint8]) -> int:
    return int(_header(data)["checksum"])


def with_extra(data: NDArray[np.uint8], extra: Mapping[str, Any]) -> NDArray[np.uint8]:
    """The program with these values behind it, in place of those that were there. ValueError: JSON cannot hold them."""
    try:
        text = json.dumps(dict(extra), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"extra must be JSON-able: {error}") from error
    end = int(_header(data)["extra"]) or data.nbytes
    new = np.zeros(_up(end + len(text), 64), np.uint8)
    new[:end] = data[:end]
    new[end : end + len(text)] = np.frombuffer(text, np.uint8)
    header = _header(new)
    header["extra"], header["bytes"] = end, new.nbytes
    header["checksum"] = checksum(new)
    return new


def read_extra(data: NDArray[np.uint8]) -> dict[str, Any]:
    """What `with_extra` has written; empty where it has not."""
    at = int(_header(data)["extra"])
    if at == 0:
        return {}
    try:
        extra = json.loads(data[at:].tobytes().rstrip(b"\0"))
    except ValueError:
        extra = None
    if not isinstance(extra, dict):
        raise ValueError("the values kept with the program are no JSON object")
    return extra


def _header(data: NDArray[np.uint8]) -> Any:
    return data[: HEADER.itemsize].view(HEADER)[0]


def _up(n: int, to: int) -> int:
    return -(-n // to) * to


def _write_tables(
    data: NDArray[np.uint8],
    values: Sequence[Value],
    slots: Sequence[int],
    table: NDArray[Any],
    inputs: Sequence[int],
    outputs: Sequence[int],
) -> None:
    at = HEADER.itemsize
    rows = data[at : at + len(values) * VALUE.itemsize].view(VALUE)
    for row, value, slot in zip(rows, values, slots, strict=True):
        row["slot"], row["channels"], row["rank"] = slot, value.channels, value.rank
        row["type"], row["planar"] = TYPES[value.dtype], value.planar
        row["nhwc_only"], row["border"] = value.nhwc_only, value.border
    at += _up(rows.nbytes, 8)
    data[at : at + table.nbytes] = table.view(np.uint8).reshape(-1)
    at += table.nbytes
    ends = np.asarray([*inputs, *outputs], "<i4")
    data[at : at + ends.nbytes] = ends.view(np.uint8)


def _give_borders(values: Sequence[Value], steps: Sequence[Step]) -> None:
    """Around int8 images that only convolutions write and read, as much of the zero point as their padding asks for."""
    readers: dict[int, list[Step]] = {}
    others = set[int]()
    for step in steps:
        readers.setdefault(step.x, []).append(step)
        others |= {step.residual} | (set() if step.kind == "conv2d" else {step.x, step.y})
    for v, value in enumerate(values):
        read = readers.get(v, [])
        zeros = all(step.fields.get("pad_mode", 0) == PAD_MODES.index("zeros") for step in read)
        if v not in others and zeros and value.dtype == "int8" and not value.callers:
            sides = [step.fields.get(f"pad_{side}", 0) for step in read for side in _SIDES]
            most = max(sides, default=0)
            value.border = most if most <= _MOST_BORDER else 0


def _share_slots(values: Sequence[Value], steps: Sequence[Step]) -> list[int]:
    """A slot for every value of the arena: one that is free by then and wastes or grows least, else a new one."""
    last = {v: i for i, step in enumerate(steps) for v in (step.x, step.residual, step.y)}
    slots, sizes, free = [-1] * len(values), list[int](), set[int]()
    for i, step in enumerate(steps):
        if not values[step.y].callers and slots[step.y] < 0:
            size = values[step.y].size
            fits = min(free, key=lambda s: abs(sizes[s] - size), default=None)
            if fits is None:
                fits = len(sizes)
                sizes.append(0)
            free.discard(fits)
            sizes[fits] = max(sizes[fits], size)
            slots[step.y] = fits
        for v in {step.x, step.residual, step.y}:
            if v >= 0 and slots[v] >= 0 and last[v] == i:
                free.add(slots[v])
    return slots
