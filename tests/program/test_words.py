"""Token ids, tables of rows and constants as steps of a program."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from program_bytes import payload, seal
from rearranging import Atom, fields
from value_steps import ISAS

from qkernels import _core, ops, reference  # noqa: F401
from qkernels.program import Program
from qkernels.program.format import Step, Value, assemble


def ids(tokens: int = 0, **how: Any) -> Value:
    return Value(tokens, 2, "int64", callers=True, **how)


def run_by_torch(program: Program, *inputs: np.ndarray, threads: int = 1) -> list[np.ndarray]:
    program.threads = threads
    memory = torch.empty(program.arena_bytes(*(x.shape for x in inputs)) + 64, dtype=torch.uint8)
    memory = memory[-memory.data_ptr() % 64 :]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        given = [torch.from_numpy(np.array(x)) for x in inputs]
        outputs = torch.ops.qkernels.run_program(
            torch.from_numpy(program.data), memory, given, None
        )
    finally:
        torch.set_num_threads(before)
    return [y.numpy() for y in outputs]


def identity(channels: int) -> dict[str, np.ndarray]:
    eye = _core.pack_weight(np.eye(channels, dtype=np.int8))
    return {"weight": eye, "w_scale": np.ones(channels, np.float32)}


def table(rows: int, channels: int, kind: str, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    if kind == "float32":
        return {"table": random.standard_normal((rows, channels)).astype(np.float32)}
    scale = random.uniform(1e-3, 1, rows).astype(np.float32)
    return {"table": random.integers(-128, 128, (rows, channels)).astype(np.int8), "scale": scale}


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["float32", "int8"]),
    out=st.sampled_from(["float32", "int8"]),
    rows=st.integers(1, 40),
    channels=st.sampled_from([1, 3, 16, 40, 130]),
    size=st.tuples(st.integers(0, 4), st.integers(1, 9)),
    threads=st.integers(1, 3),
    seed=st.integers(0, 100),
)
def test_rows_of_a_table_have_the_bits_of_the_reference(
    kind: str, out: str, rows: int, channels: int, size: tuple[int, int], threads: int, seed: int
) -> None:
    constants = table(rows, channels, kind, seed)
    output = {"out_inv_scale": 2.5, "out_zero": -3} if out == "int8" else {}
    values = [ids(), Value(channels, 3, out, callers=out == "float32")]
    steps = [Step("embedding", "words", 0, 1, fields={"rows": rows, **output}, constants=constants)]
    if out == "int8":
        values.append(Value(channels, 3, "float32", callers=True))
        head = {"k": channels, "x_scale": 1.0, "x_zero": 0}
        steps.append(Step("linear", "as float", 1, 2, fields=head, constants=identity(channels)))
    program = Program(assemble(values, steps, [0], [len(values) - 1]), threads)
    x = np.random.default_rng(seed).integers(0, rows, size)
    tensors = {name: torch.from_numpy(array) for name, array in constants.items()}
    expected = reference.embedding(torch.from_numpy(x), tensors["table"], tensors.get("scale"))
    if output:
        expected = reference.round_to_int8(expected, torch.tensor(2.5), torch.tensor(-3))
    for isa in ISAS:
        [y] = _core.Program(program.data).run([x], threads, isa=isa)
        assert np.array_equal(y, expected.float().numpy()), isa
    assert np.array_equal(run_by_torch(program, x, threads=threads)[0], expected.float().numpy())


@pytest.mark.parametrize("bad", [-1, 7, 2**40, -(2**63)])
def test_an_id_outside_of_the_table_is_named_before_anything_runs(bad: int) -> None:
    values = [ids(), Value(4, 3, "float32", callers=True)]
    steps = [Step("embedding", "words", 0, 1, fields={"rows": 7}, constants=table(7, 4, "int8"))]
    program = Program(assemble(values, steps, [0], [1]))
    x = np.zeros((3, 5), np.int64)
    program(x)
    x[2, 1] = bad
    sentence = rf"step words: the id at \[2, 1\] is {bad}, outside \[0, 7\)"
    with pytest.raises(ValueError, match=sentence):
        program(x)
    with pytest.raises(RuntimeError, match=sentence):
        run_by_torch(program, x)


def test_ids_of_another_dtype_or_number_are_refused() -> None:
    values = [ids(5), Value(4, 3, "float32", callers=True)]
    steps = [Step("embedding", "words", 0, 1, fields={"rows": 7}, constants=table(7, 4, "int8"))]
    program = Program(assemble(values, steps, [0], [1]))
    assert program.input_dtypes == ["int64"] and program.id_counts == [7]
    with pytest.raises(TypeError, match="input 0 has dtype int32; int64 is needed"):
        program(np.zeros((1, 5), np.int32))
    with pytest.raises(TypeError, match="input 0 has dtype float32; int64 is needed"):
        program(np.zeros((1, 5), np.float32))
    with pytest.raises(ValueError, match=r"input 0 is \[1, 6\]; \[N, 5\] is needed"):
        program(np.zeros((1, 6), np.int64))
    with pytest.raises(RuntimeError, match=r"dtype float32; int64 is needed"):
        run_by_torch(program, np.zeros((1, 5), np.float32))


def test_a_mask_becomes_numbers_by_a_table_of_two() -> None:
    """What is added to scores: -inf where the mask is 0, 0 where it is 1, as [n, 1, 1, t]."""
    values = [ids(), Value(1, 3, "float32"), Value(0, 4, "float32", callers=True, planar=True)]
    constants = {"table": np.array([[-math.inf], [0.0]], np.float32)}
    atoms = [Atom(0, 0), Atom(1, 3), Atom(3, 3)]
    steps = [
        Step("embedding", "mask", 0, 1, fields={"rows": 2}, constants=constants),
        Step("rearrange", "as scores", 1, 2, fields=fields(atoms, [0, 1, 2])),
    ]
    program = Program(assemble(values, steps, [0], [2]))
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    assert np.array_equal(program(mask), np.where(mask, 0, -np.inf)[:, None, None, :])


def with_first_token(dtype: str) -> Program:
    """Tokens [n, 4, 40] of ids, behind a constant one."""
    random = np.random.default_rng(0)
    first = random.integers(-9, 9, (1, 1, 40)).astype(dtype)
    values = [
        ids(4),
        Value(40, 3, dtype),
        Value(40, 3, dtype),
        Value(40, 3, "float32", callers=True),
    ]
    part = fields(
        [Atom(0, 0), Atom(1, 1), Atom(3, 3)], [0, 1, 2], join_axis=1, join_at=1, join_total=5
    )
    steps = [
        Step("embedding", "words", 0, 1, fields={"rows": 9}, constants=table(9, 40, "int8")),
        Step(
            "constant",
            "first",
            0,
            2,
            fields={"c": 40, "join_axis": 1, "join_total": 5},
            constants={"data": first},
        ),
        Step("rearrange", "behind", 1, 2, fields=part),
        Step("linear", "head", 2, 3, fields={"k": 40}, constants=identity(40)),
    ]
    return Program(assemble(values, steps, [0], [3]))


@pytest.mark.parametrize("batch", [0, 1, 5])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_constant_stands_in_front_of_every_sequence(dtype: str, batch: int) -> None:
    program = with_first_token(dtype)
    x = np.random.default_rng(1).integers(0, 9, (batch, 4))
    y = program(x)
    first = np.random.default_rng(0).integers(-9, 9, 40)
    assert y.shape == (batch, 5, 40)
    assert (np.abs(y[:, 0] - first) <= (0 if dtype == "int8" else 0.04)).all()
    assert all(np.array_equal(y[i : i + 1], program(x[i : i + 1])) for i in range(batch))
    for isa in ISAS:
        assert np.array_equal(_core.Program(program.data).run([x], 2, isa=isa)[0], y)
    for threads in (1, 2, 3):
        assert np.array_equal(run_by_torch(program, x, threads=threads)[0], y)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("c", 41, "its array lies outside"),
        ("h", 2, "its array lies outside"),
        ("w", 2, "an axis that its output does not have"),
        ("c", 0, "its array is empty or too large"),
        ("join_axis", 2, "along an axis that its output does not have"),
        ("join_total", 0, "it joins to no size"),
        ("join_total", -1, "it joins to no size"),
    ],
)
def test_a_constant_that_does_not_fit_is_refused(field: str, value: int, sentence: str) -> None:
    data = with_first_token("int8").data.copy()
    payload(data, 1)[field] = value
    seal(data)
    with pytest.raises(ValueError, match=sentence):
        Program(data)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("rows", 10, "its table is not of its sizes"),
        ("rows", 0, "its table is not of its sizes"),
        ("out_zero", 128, "its output has no scale or zero point"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(field: str, value: int, sentence: str) -> None:
    data = with_first_token("int8").data.copy()
    payload(data, 0)[field] = value
    seal(data)
    with pytest.raises(ValueError, match=sentence):
        Program(data)


def test_a_table_without_good_scales_is_refused() -> None:
    constants = table(9, 4, "int8")
    constants["scale"][3] = 0
    values = [ids(), Value(4, 3, "float32", callers=True)]
    steps = [Step("embedding", "words", 0, 1, fields={"rows": 9}, constants=constants)]
    with pytest.raises(ValueError, match="a scale of its rows is not finite and above 0"):
        Program(assemble(values, steps, [0], [1]))
