"""Reshapes, permutations, slices and joins of any box as steps of a program."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from program_bytes import payload, seal, tables
from rearranging import Atom, fields, rearranged
from value_steps import ISAS

from qkernels import _core, ops  # noqa: F401
from qkernels.program import Program
from qkernels.program.format import Step, Value, assemble


def caller(rank: int = 4, channels: int = 0, **how: Any) -> Value:
    return Value(channels, rank, "float32", callers=True, planar=rank == 4, **how)


def inner(rank: int, dtype: str = "float32", channels: int = 0, size: int = 0) -> Value:
    return Value(channels, rank, dtype, size=size)


def moved(
    x: np.ndarray, *payloads: dict[str, Any], ranks: tuple[int, ...] = (4,), threads: int = 1
) -> np.ndarray:
    """x through rearrange steps of float32, one behind the other."""
    values = [caller(x.ndim), *(inner(rank) for rank in ranks[:-1]), caller(ranks[-1])]
    steps = [Step("rearrange", f"r{i}", i, i + 1, fields=p) for i, p in enumerate(payloads)]
    program = Program(assemble(values, steps, [0], [len(steps)]), threads)
    y: np.ndarray = program(x)
    given = torch.from_numpy(np.array(x))
    memory = torch.empty(program.arena_bytes(x.shape) + 64, dtype=torch.uint8)
    memory = memory[-memory.data_ptr() % 64 :]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    program.threads = threads
    try:
        [other] = torch.ops.qkernels.run_program(
            torch.from_numpy(program.data), memory, [given], None
        )
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(other.numpy(), y), "torch and NumPy differ"
    return y


@st.composite
def rearrangements(draw: st.DrawFn) -> tuple[list[Atom], list[int], tuple[int, ...]]:
    """Atoms of a box, their order in y, and the sizes of the box."""
    atoms, sizes = [(0, draw(st.integers(1, 3)))], []
    for axis in range(4):
        for _ in range(draw(st.integers(0, 2 if axis else 0))):
            atoms.append((axis, draw(st.integers(1, 5))))
    atoms = sorted(atoms[:8], key=lambda a: a[0])
    for axis in range(4):
        sizes.append(int(np.prod([size for a, size in atoms if a == axis])))
    order = [0, *draw(st.permutations(range(1, len(atoms))))]
    targets = [
        0,
        *sorted(
            draw(st.lists(st.integers(0, 3), min_size=len(atoms) - 1, max_size=len(atoms) - 1))
        ),
    ]
    free = {axis: draw(st.integers(0, 7)) for axis in range(4)}
    made = []
    for i, (axis, size) in enumerate(atoms):
        start, stride = (
            draw(st.integers(0, size - 1)) if i else 0,
            draw(st.integers(1, 3)) if i else 1,
        )
        most = -(-(size - start) // stride)
        count = draw(st.sampled_from([-1, most, 1])) if i else -1
        within = [j for j, (other, _) in enumerate(atoms) if other == axis]
        is_free = i == 0 or (axis > 0 and within[free[axis] % len(within)] == i)
        start = start - size if start and draw(st.booleans()) else start
        made.append(
            Atom(axis, targets[order.index(i)], -1 if is_free else size, start, count, stride)
        )
    return made, order, tuple(sizes)


@settings(max_examples=300, deadline=None)
@given(rearrangements(), st.integers(1, 3))
def test_any_atoms_in_any_order_land_where_numpy_puts_them(
    drawn: tuple[list[Atom], list[int], tuple[int, ...]], threads: int
) -> None:
    atoms, order, sizes = drawn
    x = np.random.default_rng(0).standard_normal(sizes).astype(np.float32)
    y = moved(x, fields(atoms, order), threads=threads)
    assert np.array_equal(y, rearranged(x, atoms, order))


WINDOWS = [Atom(0, 0), Atom(1, 0), Atom(1, 1, 7), Atom(2, 0), Atom(2, 2, 7), Atom(3, 3)]
WINDOW_ORDER = [0, 1, 3, 2, 4, 5]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("batch", [0, 1, 2, 5])
def test_windows_become_images_and_come_back_however_the_batch_is_cut(
    batch: int, threads: int
) -> None:
    x = (
        np.random.default_rng(1).standard_normal((batch, 140, 70, 96)).astype(np.float32)
    )  # 3.8 MB an image
    back = [Atom(0, 0), Atom(0, 1, 20), Atom(0, 2, 10), Atom(1, 1, 7), Atom(2, 2, 7), Atom(3, 3)]
    apart, together = fields(WINDOWS, WINDOW_ORDER), fields(back, [0, 1, 3, 2, 4, 5])
    assert np.array_equal(moved(x, apart, together, ranks=(4, 4), threads=threads), x)
    assert np.array_equal(moved(x, apart, threads=threads), rearranged(x, WINDOWS, WINDOW_ORDER))


@pytest.mark.parametrize("shape", [(1, 300, 257, 3), (2, 7, 65, 129), (1, 1, 1000, 40)])
@pytest.mark.parametrize("order", [[0, 3, 1, 2], [0, 2, 1, 3], [0, 3, 2, 1], [0, 1, 3, 2]])
def test_transposes_larger_than_a_tile_are_whole(shape: tuple[int, ...], order: list[int]) -> None:
    x = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    atoms = [Atom(axis, order.index(axis)) for axis in range(4)]
    for threads in (1, 2, 3):
        y = moved(x, fields(atoms, order), threads=threads)
        assert np.array_equal(y, x.transpose(order))


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("groups", [2, 3, 7, 20, 29])
@pytest.mark.parametrize("run", [1, 2, 4])
def test_shuffled_channels_of_every_width_are_whole(run: int, groups: int, dtype: str) -> None:
    """Groups of runs become runs of groups, both ways, of elements of 1 to 16 bytes."""
    channels = groups * 37 * run
    there = [Atom(0, 0), Atom(1, 1), Atom(2, 2), Atom(3, 3, groups), Atom(3, 3), Atom(3, 3, run)]
    back = [Atom(0, 0), Atom(1, 1), Atom(2, 2), Atom(3, 3), Atom(3, 3, groups), Atom(3, 3, run)]
    x = np.random.default_rng(0).integers(-128, 128, (1, 3, 5, channels)).astype(np.float32)
    for atoms in (there, back):
        payload_of = fields(atoms, [0, 1, 2, 4, 3, 5])
        values = [inner(4, dtype, channels), inner(4, dtype, channels)]
        values.insert(0, Value(channels, 4, "float32", callers=True, nhwc_only=True))
        values.append(Value(channels, 4, "float32", callers=True))
        steps = [
            Step("unary", "in", 0, 1),
            Step("rearrange", "shuffle", 1, 2, fields=payload_of),
            Step("unary", "out", 2, 3),
        ]
        program = Program(assemble(values, steps, [0], [3]))
        y = program(x.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
        assert np.array_equal(y, rearranged(x, atoms, [0, 1, 2, 4, 3, 5]))


def halves(dtype: str, threads: int = 1) -> tuple[Program, np.ndarray]:
    """Rows of 6 channels, int8 or not, whose halves are exchanged."""
    eye = {"weight": _core.pack_weight(np.eye(6, dtype=np.int8)), "w_scale": np.ones(6, np.float32)}
    values = [caller(2, 6), inner(2, dtype, 6), inner(2, dtype, 6), caller(2, 6)]
    last, first = (
        fields([Atom(0, 0), Atom(3, 3, 6, start, 3)], [0, 1], join_axis=3, join_at=3 - start)
        for start in (3, 0)
    )
    steps = [
        Step("linear", "in", 0, 1, fields={"k": 6}, constants=eye),
        Step("rearrange", "last", 1, 2, fields=last),
        Step("rearrange", "first", 1, 2, fields=first),
        Step("linear", "out", 2, 3, fields={"k": 6}, constants=eye),
    ]
    return Program(assemble(values, steps, [0], [3]), threads), np.arange(
        -12, 12, dtype=np.float32
    ).reshape(4, 6)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_parts_are_joined_behind_each_other(dtype: str) -> None:
    program, x = halves(dtype)
    for isa in ISAS:
        [y] = _core.Program(program.data).run([x], isa=isa)
        assert np.array_equal(y, x[:, [3, 4, 5, 0, 1, 2]])


def test_a_join_that_lacks_a_part_or_begins_elsewhere_is_refused() -> None:
    program, x = halves("float32")
    for changed, sentence in (
        ({"count": [-1, 2]}, "lacks a part"),
        ({"join_at": 2}, "its part begins at 2, where none before it has ended"),
        ({"join_total": 7}, "7 channels where its output has 6"),
        ({"join_axis": 1}, "along an axis that its output does not have"),
        ({"join_axis": 0}, "along an axis that its output does not have"),
        ({"join_at": 0}, "a value that exists already, or a part of none"),
    ):
        data = program.data.copy()
        for name, value in changed.items():
            place = payload(data, 2)[name]
            if isinstance(value, list):
                place[: len(value)] = value
            else:
                payload(data, 2)[name] = value
        seal(data)
        with pytest.raises(ValueError, match=sentence):
            Program(data)(x)


def test_a_view_takes_no_slot_and_no_time_and_stays_until_its_last_reader() -> None:
    """1 -> view 2; 3 is made while both live; 4 is made of 2."""
    wide = [Atom(0, 0), Atom(3, 1, 2), Atom(3, 3)]
    back = [Atom(0, 0), Atom(1, 3), Atom(3, 3)]
    turned = [Atom(0, 0), Atom(3, 3, 2), Atom(3, 3)]
    values = [caller(2, 6), inner(2), inner(3), inner(2), caller(2, 6), caller(2, 6)]
    values[3:3] = []
    flip = fields(turned, [0, 2, 1])
    steps = [
        Step("rearrange", "turned", 0, 1, fields=flip),
        Step("rearrange", "view", 1, 2, fields=fields(wide, [0, 1, 2])),
        Step("rearrange", "other", 1, 3, fields=flip),
        Step("rearrange", "last", 2, 4, fields=fields(back, [0, 1, 2])),
        Step("rearrange", "also", 3, 5, fields=fields([Atom(0, 0), Atom(3, 3)], [0, 1])),
    ]
    program = Program(assemble(values, steps, [0], [4, 5]))
    slots = tables(program.data)[1]["slot"]
    assert slots[1] == slots[2] != slots[3]
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    turned_x = x.reshape(4, 2, 3).transpose(0, 2, 1).reshape(4, 6)
    last, also = program(x)
    assert np.array_equal(last, turned_x)
    assert np.array_equal(also, turned_x.reshape(4, 2, 3).transpose(0, 2, 1).reshape(4, 6))


def test_values_are_never_moved_within_one_slot() -> None:
    x = [Atom(0, 0), Atom(3, 3, 2), Atom(3, 3)]
    values = [caller(2, 6), inner(2), inner(2), caller(2, 6)]
    steps = [Step("rearrange", str(i), i, i + 1, fields=fields(x, [0, 2, 1])) for i in range(3)]
    data = assemble(values, steps, [0], [3])
    tables(data)[1]["slot"][2] = tables(data)[1]["slot"][1]
    seal(data)
    with pytest.raises(ValueError, match="step 1 may not run: it moves values within one slot"):
        Program(data)


@pytest.mark.parametrize(
    ("atoms", "order", "sentence"),
    [
        ([Atom(0, 0), Atom(3, 3, 5), Atom(3, 3, 2)], [0, 1, 2], "its axis 3 of 12 is no product of its parts"),
        ([Atom(0, 0), Atom(3, 3, 5), Atom(3, 3)], [0, 1, 2], "its axis 3 of 12 is no product of its parts"),
        ([Atom(0, 0)], [0], "its axis 3 of 12 is no product of its parts"),
        ([Atom(0, 0), Atom(3, 3, start=12)], [0, 1], "its slice from 12, 0 at steps of 1, is not within 12"),
        ([Atom(0, 0), Atom(3, 3, start=-13)], [0, 1], "its slice from -1"),
        ([Atom(0, 0), Atom(3, 3, start=3, count=4, stride=3)], [0, 1], "its slice from 3, 4 at steps of 3, is not"),
        ([Atom(0, 0), Atom(3, 3, count=-14)], [0, 1], "is not within 12"),
        ([Atom(0, 0), Atom(0, 3, 2), Atom(3, 3)], [0, 1, 2], "it mixes images: of 4 with 4 parts it makes 2"),
        ([Atom(0, 0), Atom(0, 3, 3), Atom(3, 3)], [0, 1, 2], "its axis 0 of 4 is no product of its parts"),
        ([Atom(0, 0), Atom(3, 3, count=0)], [0, 1], "a slice of it is empty"),
        ([Atom(0, 0), Atom(3, 3, 0)], [0, 1], "the sizes of its atoms are not known"),
        ([Atom(0, 0), Atom(3, 3), Atom(3, 3)], [0, 1, 2], "the sizes of its atoms are not known"),
        ([Atom(0, 0), Atom(3, 3, 3), Atom(3, 3)], [0, 1, 1], "its order names an atom twice or none"),
        ([Atom(0, 0, 4), Atom(3, 3)], [0, 1], "its first atom is not the whole batch"),
        ([Atom(0, 0, start=1), Atom(3, 3)], [0, 1], "its first atom is not the whole batch"),
        ([Atom(0, 0), Atom(3, 3, 3), Atom(3, 0)], [0, 1, 2], "its axes are in no order"),
        ([Atom(0, 0), Atom(3, 1)], [0, 1], "an atom is of an axis that its value does not have"),
        ([Atom(0, 0), Atom(2, 3)], [0, 1], "an atom is of an axis that its value does not have"),
    ],
)  # fmt: skip
def test_atoms_that_do_not_fit_are_named(
    atoms: list[Atom], order: list[int], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        moved(np.zeros((4, 12), np.float32), fields(atoms, order), ranks=(2,))


# ---- inputs


@pytest.mark.parametrize("planar", [True, False])
def test_an_input_of_fixed_sizes_takes_no_other(planar: bool) -> None:
    how = {"planar": True} if planar else {"nhwc_only": True}
    values = [
        Value(3, 4, "float32", callers=True, fixed_h=4, **how),
        Value(3, 4, "float32", callers=True, planar=planar),
    ]
    atoms = [Atom(axis, axis) for axis in range(4)]
    program = Program(
        assemble(
            values,
            [Step("rearrange", "as it is", 0, 1, fields=fields(atoms, [0, 1, 2, 3]))],
            [0],
            [1],
        )
    )
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    assert np.array_equal(program(x), x)
    assert np.array_equal(program(x.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)), x)
    arena = torch.empty(4096, dtype=torch.uint8)
    arena = arena[-arena.data_ptr() % 64 :]
    for given_x in (np.zeros((2, 3, 5, 5), np.float32), np.zeros((2, 2, 4, 5), np.float32)):
        with pytest.raises(ValueError, match=r"\[N, 3, 4, W\] is needed"):
            program(given_x)
        with pytest.raises(RuntimeError, match=r"\[N, 3, 4, W\] is needed"):
            torch.ops.qkernels.run_program(
                torch.from_numpy(program.data), arena, [torch.from_numpy(given_x)], None
            )


def test_tables_of_values_that_cannot_be_are_refused() -> None:
    values = [caller(2, 6), inner(2, channels=6), caller(2, 6)]
    steps = [
        Step("rearrange", str(i), i, i + 1, fields=fields([Atom(0, 0), Atom(3, 3)], [0, 1]))
        for i in range(2)
    ]
    data = assemble(values, steps, [0], [2])
    for v, field, value, sentence in (
        (0, "fixed_h", 3, "fixed sizes that it cannot have"),
        (0, "fixed_w", -1, "fixed sizes that it cannot have"),
        (0, "nhwc_only", 1, "a value has no sizes"),
        (1, "type", 4, "value 1 is no input, but int64"),
        (0, "type", 4, "it computes with no int64"),
        (0, "type", 3, "input 0 is no float32 or int64 value"),
        (0, "type", 1, "neither float32, int8 nor int64"),
    ):
        forged = data.copy()
        tables(forged)[1][field][v] = value
        seal(forged)
        with pytest.raises(ValueError, match=sentence):
            Program(forged)
