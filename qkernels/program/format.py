"""The bytes of a program, as csrc/core/program.h reads them."""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qkernels.program import kernel_core
from qkernels.program.memory import zeros

_CONSTANT = np.dtype([("at", "<i8"), ("bytes", "<i8")])  # where an array lies in the program
_SIDES = ("top", "bottom", "left", "right")


@dataclass(frozen=True)
class Record:
    """One struct of the format.

    It has its fields as NumPy sees them, what they are where nobody sets them, and the names that fields of few values
    have.
    """

    dtype: np.dtype[Any]
    defaults: dict[str, Any]
    choices: dict[str, tuple[str, ...]]
    strided: bool = (
        False  # of a step: its image may lie anywhere or have a border, and so may what it writes
    )
    may_be_view: bool = False  # of a step: with some payloads it leaves its x as it lies

    def rows(self, count: int) -> NDArray[Any]:
        """``count`` records of defaults."""
        rows = np.zeros(count, self.dtype)
        for name, value in self.defaults.items():
            rows[name] = value
        return rows

    def value(self, field: str, given: Any) -> Any:
        """What a field holds for a name or a number; ValueError where the record has no such field or name."""
        if field not in (self.dtype.names or ()):
            raise ValueError(
                f"{field!r} is unknown; choose one of {', '.join(self.dtype.names or ())}"
            )
        if not isinstance(given, str):
            return self._filled(field, given)
        names = self.choices[field]
        if given not in names:
            raise ValueError(f"{field}={given!r} is unknown; choose one of {', '.join(names)}")
        return names.index(given)

    def _filled(self, field: str, given: Any) -> Any:
        """``given``, the first numbers of a field that holds several with its default behind them."""
        shape = self.dtype[field].shape
        if not shape:
            return given
        if len(given) > shape[0]:
            raise ValueError(f"{field!r} holds {shape[0]} numbers, not {len(given)}")
        return [*given, *[self.defaults[field]] * (shape[0] - len(given))]


@functools.cache
def record(name: str) -> Record:
    """A struct of csrc/core/program.h, as the compiled core describes it: header, value or step."""
    return _record(kernel_core.PROGRAM_RECORDS[name])


@functools.cache
def kinds() -> dict[str, Record]:
    """The kinds of steps in the order of their numbers, each with its payload (csrc/cpu/steps)."""
    return {name: _record(described) for name, described in kernel_core.STEP_KINDS.items()}


def _record(described: dict[str, Any]) -> Record:
    names, formats, offsets, defaults, choices = [], [], [], {}, {}
    for name, format, offset, default, values in described["fields"]:
        constant = format == "constant"
        names.append(name)
        formats.append(_CONSTANT if constant else np.dtype(format))
        offsets.append(offset)
        if not constant and np.dtype(format).kind != "S":
            defaults[name] = default
        if values:
            choices[name] = values
    layout = {
        "names": names,
        "formats": formats,
        "offsets": offsets,
        "itemsize": described["bytes"],
    }
    dtype = np.dtype(layout) if names else np.dtype([])  # type: ignore[call-overload]
    how = {key: described.get(key, False) for key in ("strided", "may_be_view")}
    return Record(dtype, defaults, choices, **how)


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
    fixed_h: int = 0  # of an input: its only height, or number of tokens; 0: any
    fixed_w: int = 0


@dataclass
class Step:
    """One step.

    ``others``: the values that it reads beside ``x``. ``fields``: those of its payload that differ from their defaults.
    ``constants``: the arrays of its payload.
    """

    kind: str
    name: str
    x: int
    y: int
    others: tuple[int, ...] = ()
    fields: dict[str, Any] = field(default_factory=dict)
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.x, *self.others)


def assemble(
    values: Sequence[Value],
    steps: Sequence[Step],
    inputs: Sequence[int],
    outputs: Sequence[int],
    max_batch: int | None = None,
) -> NDArray[np.uint8]:
    """The program as bytes. Equal constant arrays (the same object) are held once.

    Raises ValueError for a field that its kind of step does not have.
    """
    _give_borders(values, steps)
    slots = _share_slots(values, steps)
    table = _Table(len(values), steps, len(inputs) + len(outputs))
    data = zeros(_up(table.used, kernel_core.ALIGNMENT))
    header = _header(data)
    counts = (len(values), len(steps), len(inputs), len(outputs), max(slots, default=-1) + 1)
    header["magic"], header["version"] = kernel_core.PROGRAM_MAGIC, kernel_core.PROGRAM_VERSION
    header["layout"], header["bytes"] = kernel_core.LAYOUT_VERSION, data.nbytes
    for key, count in zip(("values", "steps", "inputs", "outputs", "slots"), counts, strict=True):
        header[key] = count
    header["max_batch"] = max_batch or 0
    _write_tables(data, values, slots, table.rows, inputs, outputs)
    for at, array in table.pieces:
        data[at : at + array.nbytes] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
    header["checksum"] = checksum(data)
    return data


class _Table:
    """The rows of steps, and the bytes behind the tables with their offsets: payloads, names, constants."""

    def __init__(self, values: int, steps: Sequence[Step], ends: int) -> None:
        self.rows = record("step").rows(len(steps))
        self.pieces: list[tuple[int, NDArray[Any]]] = []
        self.used = record("header").dtype.itemsize + _up(
            values * record("value").dtype.itemsize, 8
        )
        self.used += self.rows.nbytes + 4 * ends
        numbers = {kind: i for i, kind in enumerate(kinds())}
        payloads = [_payload(step) for step in steps]
        for row, step, payload in zip(self.rows, steps, payloads, strict=True):
            row["kind"], row["y"] = numbers[step.kind], step.y
            row["reads"][: len(step.reads)] = step.reads
            row["payload"] = self.put(payload, 8)
        for row, step in zip(self.rows, steps, strict=True):
            name = np.frombuffer(step.name.encode(), np.uint8)
            row["name"], row["name_bytes"] = self.put(name, 1), len(name)
        places: dict[int, int] = {}
        for step, payload in zip(steps, payloads, strict=True):
            for key, array in step.constants.items():
                if id(array) not in places:
                    places[id(array)] = self.put(array, kernel_core.ALIGNMENT)
                payload[key] = (places[id(array)], array.nbytes)

    def put(self, array: NDArray[Any], align: int) -> int:
        at = _up(self.used, align)
        self.pieces.append((at, array))
        self.used = at + array.nbytes
        return at


def checksum(data: NDArray[np.uint8]) -> int:
    """CRC-32 of everything behind the header."""
    return zlib.crc32(data[record("header").dtype.itemsize :].data)


def stored_checksum(data: NDArray[np.uint8]) -> int:
    return int(_header(data)["checksum"])


def with_extra(data: NDArray[np.uint8], extra: Mapping[str, Any]) -> NDArray[np.uint8]:
    """The program with these values behind it, in place of those that were there. ValueError: JSON cannot hold them."""
    try:
        text = json.dumps(dict(extra), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"extra must be JSON-able: {error}") from error
    end = int(_header(data)["extra"]) or data.nbytes
    new = zeros(_up(end + len(text), kernel_core.ALIGNMENT))
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
    header = record("header").dtype
    return data[: header.itemsize].view(header)[0]


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
    at, kind = record("header").dtype.itemsize, record("value")
    rows = data[at : at + len(values) * kind.dtype.itemsize].view(kind.dtype)
    for row, value, slot in zip(rows, values, slots, strict=True):
        row["slot"], row["channels"], row["rank"] = slot, value.channels, value.rank
        row["type"], row["planar"] = kind.value("type", value.dtype), value.planar
        row["nhwc_only"], row["border"] = value.nhwc_only, value.border
        row["fixed_h"], row["fixed_w"] = value.fixed_h, value.fixed_w
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
        others |= {*step.others, *(() if kinds()[step.kind].strided else (step.x, step.y))}
    for v, value in enumerate(values):
        read = readers.get(v, [])
        zeros = all(step.fields.get("pad_mode", "zeros") == "zeros" for step in read)
        if v not in others and zeros and value.dtype == "int8" and not value.callers:
            sides = [step.fields.get(f"pad_{side}", 0) for step in read for side in _SIDES]
            most = max(sides, default=0)
            value.border = most if most <= kernel_core.MAX_BORDER else 0


def _share_slots(values: Sequence[Value], steps: Sequence[Step]) -> list[int]:
    """A slot for every value of the arena: one that is free by then and wastes or grows least, else a new one.

    Values that lie alike share theirs as long as any of them is read.
    """
    same = _views(values, steps)
    last = {same[v]: i for i, step in enumerate(steps) for v in (*step.reads, step.y)}
    slots, sizes, free = [-1] * len(values), list[int](), set[int]()
    for i, step in enumerate(steps):
        if slots[same[step.y]] >= 0:
            slots[step.y] = slots[same[step.y]]
        if not values[step.y].callers and slots[step.y] < 0:
            size = values[step.y].size
            fits = min(free, key=lambda s: abs(sizes[s] - size), default=None)
            if fits is None:
                fits = len(sizes)
                sizes.append(0)
            free.discard(fits)
            sizes[fits] = max(sizes[fits], size)
            slots[step.y] = fits
        for v in {*step.reads, step.y}:
            if slots[v] >= 0 and last[same[v]] == i:
                free.add(slots[v])
    return slots


def _views(values: Sequence[Value], steps: Sequence[Step]) -> list[int]:
    """The value whose place each value has: another one that it is a view of, or its own."""
    same = list(range(len(values)))
    for step in steps:
        inside = not (values[step.x].callers or values[step.y].callers)
        if inside and kinds()[step.kind].may_be_view and _is_view(step):
            same[step.y] = same[step.x]
    return same


def _is_view(step: Step) -> bool:
    may_be = kinds()[step.kind].may_be_view
    return may_be and bool(kernel_core.is_view(step.kind, _payload(step).tobytes()))


def _payload(step: Step) -> NDArray[Any]:
    """A step's payload, but for the places of its constants."""
    kind = kinds()[step.kind]
    row = kind.rows(1)
    for key, value in step.fields.items():
        row[key] = kind.value(key, value)
    return row
