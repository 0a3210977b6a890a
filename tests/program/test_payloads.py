"""Python and C++ mean the same bytes by every field of a program."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qkernels import _core
from qkernels.program.format import Step, Value, assemble, kinds, record

KINDS = list(_core.STEP_KINDS)


def distinct(dtype: np.dtype[Any]) -> np.ndarray:
    """One record whose fields hold numbers of their own, 1, 2, 3..., a constant or a list several of them."""
    row, number = np.zeros(1, dtype), 0
    for name in dtype.names or ():
        own = range(number + 1, number + 1 + len(parts(dtype[name])))
        row[name] = tuple(own) if dtype[name].names or dtype[name].shape else own[0]
        number += len(own)
    return row


def parts(dtype: np.dtype[Any]) -> list[str]:
    """What C++ calls the numbers of a field behind its name."""
    if dtype.names:
        return [f".{name}" for name in dtype.names]
    return [f".{i}" for i in range(dtype.shape[0])] if dtype.shape else [""]


@pytest.mark.parametrize("kind", KINDS)
def test_cpp_reads_each_field_of_a_payload_where_python_writes_it(kind: str) -> None:
    row = distinct(kinds()[kind].dtype)
    read = _core.read_payload(kind, row.tobytes())
    names = [name + part for name in row.dtype.names or () for part in parts(row.dtype[name])]
    assert read == [(name, float(i + 1)) for i, name in enumerate(names)]


@pytest.mark.parametrize("kind", KINDS)
def test_fields_of_a_payload_neither_overlap_nor_leave_its_end(kind: str) -> None:
    dtype = kinds()[kind].dtype
    places = sorted((dtype.fields[n][1], dtype[n].itemsize) for n in dtype.names or ())  # type: ignore[index]
    ends = [at + size for at, size in places]
    assert all(end <= at for end, (at, _) in zip(ends, places[1:], strict=False))
    assert max(ends, default=0) <= dtype.itemsize == _core.STEP_KINDS[kind]["bytes"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_payload_of_defaults_holds_what_cpp_declares(kind: str) -> None:
    read = dict(_core.read_payload(kind, kinds()[kind].rows(1).tobytes()))
    declared = {
        name + part: default
        for name, format, _, default, _ in _core.STEP_KINDS[kind]["fields"]
        if format != "constant"
        for part in parts(np.dtype(format))
    }
    assert {name: number for name, number in read.items() if name in declared} == declared
    assert all(read[name] == 0 for name in set(read) - set(declared))


def test_the_tables_have_the_sizes_that_the_file_format_names() -> None:
    assert [record(n).dtype.itemsize for n in ("header", "value", "step")] == [64, 24, 40]
    assert record("step").rows(1)["reads"].tolist() == [[-1] * 4]


def test_a_list_is_filled_up_with_its_default_and_holds_no_more_than_its_place() -> None:
    kind = kinds()["rearrange"]
    assert kind.value("size", [2]) == [2, -1, -1, -1, -1, -1, -1, -1]
    with pytest.raises(ValueError, match="'axis' holds 8 numbers, not 9"):
        kind.value("axis", [0] * 9)


def test_a_field_or_name_that_a_kind_does_not_have_is_refused() -> None:
    values = [Value(1, 2, "float32", callers=True), Value(1, 2, "float32", callers=True)]
    for fields, sentence in (
        ({"groups": 2}, "'groups' is unknown; choose one of"),
        ({"range": "static"}, "range='static' is unknown; choose one of given"),
    ):
        with pytest.raises(ValueError, match=sentence):
            assemble(values, [Step("linear", "linear", 0, 1, fields=fields)], [0], [1])
