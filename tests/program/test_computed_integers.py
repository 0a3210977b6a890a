"""Integers that a program computes: counts along tokens, the place of the largest, the rows that they name."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from test_words import run_by_torch, table
from torch import Tensor, nn
from value_steps import ISAS, OneStep, floats, quick

import qkernels as qk
from qkernels import _core, reference
from qkernels.program import Program
from qkernels.program.format import Step, Value, assemble
from qkernels.reference import Epilogue, Operand

SEEDS = st.integers(0, 2**20)
THREADS = st.integers(1, 3)
SIZES = st.tuples(st.integers(0, 3), *(st.integers(1, 7) for _ in range(3)))


def wholes(seed: int, size: tuple[int, ...], least: int = -9, most: int = 9) -> Tensor:
    values = np.random.default_rng(seed).integers(least, most, size, endpoint=True)
    return torch.from_numpy(values.astype(np.float32))


@given(size=SIZES, axis=st.integers(1, 3), seed=SEEDS, whole=st.booleans(), threads=THREADS)
@quick(100)
def test_sums_up_to_each_place_have_the_bits_of_the_reference_and_integers_those_of_torch(
    size: tuple[int, ...], axis: int, seed: int, whole: bool, threads: int
) -> None:
    x = wholes(seed, size) if whole else floats(seed, size)
    expected = reference.cumsum(x, axis)
    OneStep("cumsum", {"axis": axis}, Epilogue(), size).check([Operand(x)], expected, threads)
    if whole:
        assert torch.equal(expected, x.cumsum(axis))


@given(size=SIZES, axis=st.integers(1, 3), seed=SEEDS, nasty=st.booleans(), threads=THREADS)
@quick(100)
def test_the_place_of_the_largest_is_the_first_of_equals_as_in_torch(
    size: tuple[int, ...], axis: int, seed: int, nasty: bool, threads: int
) -> None:
    x = floats(seed, size, nasty=True) if nasty else wholes(seed, size, 0, 2)
    y_size = (*size[:axis], 1, *size[axis + 1 :])
    expected = reference.argmax(x, axis)
    OneStep("argmax", {"axis": axis}, Epilogue(), y_size).check([Operand(x)], expected, threads)
    assert torch.equal(expected, x.argmax(axis, keepdim=True).float())


@given(
    n=st.integers(0, 4), t=st.integers(1, 6), c=st.sampled_from([1, 3, 40]), seed=SEEDS, small=st.booleans(),
    threads=THREADS,
)  # fmt: skip
@quick(60)
def test_one_row_of_each_sequence_is_the_one_that_is_named(
    n: int, t: int, c: int, seed: int, small: bool, threads: int
) -> None:
    x, index = wholes(seed, (n, t, c)), wholes(seed, (n, 1), 0, t - 1)
    program = gathering(t, c, small)
    for isa in ISAS:
        [y] = program.run([x.numpy(), index.numpy()], threads, isa=isa)
        assert np.array_equal(y, reference.gather(x, index).numpy()), isa


def gathering(t: int, c: int, small: bool) -> Any:
    values = [
        Value(c, 3, "float32", callers=True, fixed_h=t),
        Value(1, 2, "float32", callers=True),
    ]
    steps = []
    x = 0
    if small:
        values.append(Value(c, 3, "int8"))
        steps.append(Step("unary", "to int8", 0, 2))
        x = 2
    values.append(Value(c, 2, "int8" if small else "float32", callers=not small))
    steps.append(Step("gather", "rows", x, len(values) - 1, (1,)))
    if small:
        values.append(Value(c, 2, "float32", callers=True))
        steps.append(Step("unary", "back", len(values) - 2, len(values) - 1))
    return _core.Program(assemble(values, steps, [0, 1], [len(values) - 1]))


def counting(rows: int) -> Program:
    """Rows of a table that sums along tokens name."""
    values = [
        Value(1, 3, "float32", callers=True),
        Value(1, 3, "float32"),
        Value(5, 3, "float32", callers=True),
    ]
    steps = [
        Step("cumsum", "counts", 0, 1, fields={"axis": 1}),
        Step("embedding", "rows", 1, 2, fields={"rows": rows}, constants=table(rows, 5, "float32")),
    ]
    return Program(assemble(values, steps, [0], [2]))


def test_computed_ids_name_rows_as_given_ones_do() -> None:
    program, x = counting(9), np.zeros((4, 6, 1), np.float32)
    x[1], x[2, 3] = 1, 8
    ids = torch.from_numpy(x[..., 0].cumsum(1).astype(np.int64))
    expected = reference.embedding(ids, torch.from_numpy(table(9, 5, "float32")["table"])).numpy()
    assert np.array_equal(program(x), expected)
    for threads in (1, 2, 3):
        assert np.array_equal(run_by_torch(program, x, threads=threads)[0], expected)


@pytest.mark.parametrize("bad", [9, -1, 0.5, np.inf, np.nan])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_computed_id_outside_of_the_table_is_named_by_its_place_in_the_batch(
    bad: float, threads: int
) -> None:
    program, x = counting(9), np.zeros((7, 6, 1), np.float32)
    program.threads = threads
    x[5, 2] = bad
    sentence = rf"step rows: the id at \[5, 2\] is {bad:g}, outside \[0, 9\)"
    with pytest.raises(ValueError, match=sentence):
        program(x)
    with pytest.raises(RuntimeError, match=sentence):
        run_by_torch(program, x, threads=threads)
    x[5, 2] = 0
    program(x)


def test_a_row_number_outside_of_its_sequence_is_named() -> None:
    x, index = np.zeros((3, 4, 5), np.float32), np.array([[0.0], [4.0], [1.0]], np.float32)
    with pytest.raises(ValueError, match=r"step rows: the id at \[1, 0\] is 4, outside \[0, 4\)"):
        gathering(4, 5, small=False).run([x, index])


# ---- models


class Positions(nn.Module):
    """Rows for positions that count the words that are no padding, as RoBERTa has them."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(30, 16, padding_idx=1), nn.Embedding(12, 16)
        self.head = nn.Linear(16, 8)

    def forward(self, ids: Tensor) -> Tensor:
        mask = ids.ne(1).int()
        places = (torch.cumsum(mask, dim=1).type_as(mask) * mask).long() + 1
        return self.head(self.words(ids) + self.places(places))


class LastToken(nn.Module):
    """The answer of the last word that is no padding, as classifiers on language models give it."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(30, 16), nn.Linear(16, 8)

    def forward(self, ids: Tensor) -> Tensor:
        y = self.head(self.words(ids))
        places = torch.arange(ids.shape[-1], dtype=torch.int32)
        last = (places * (ids != 1).to(torch.int32)).argmax(-1)
        return y[torch.arange(ids.shape[0]), last]


class LargestId(LastToken):
    """The token of the largest id, which is the end of the text, as CLIP pools it."""

    def forward(self, ids: Tensor) -> Tensor:
        y = self.head(self.words(ids))
        return y[torch.arange(ids.shape[0]), ids.to(torch.int).argmax(dim=-1)]


class FirstOf(LastToken):
    """The first word of one id."""

    def forward(self, ids: Tensor) -> Tensor:
        y = self.head(self.words(ids))
        return y[torch.arange(ids.shape[0]), (ids == 7).int().argmax(dim=-1)]


@pytest.mark.parametrize("make", [Positions, LastToken, LargestId, FirstOf])
@pytest.mark.parametrize("exact", [False, True])
def test_what_counts_words_is_one_program(make: type[nn.Module], exact: bool) -> None:
    torch.manual_seed(0)
    model, ids = make().eval(), torch.randint(0, 30, (3, 9))
    ids[1, 5:] = 1
    int8 = qk.quantize(model, "static", [ids])
    chained = qk.compile(int8, ids, exact=exact)
    assert chained.report.unfused == [], chained.report
    for batch in (1, 3, 8):
        ids = torch.randint(0, 30, (batch, 9))
        ids[0, 4:] = 1
        y, wanted = chained(ids), int8(ids)
        assert torch.equal(y, wanted) if exact else (y - wanted).norm() < 0.02 * wanted.norm()


class Shifted(nn.Module):
    """Rows of a table that has fewer of them than there are words."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.few = nn.Embedding(30, 16), nn.Embedding(12, 16)
        self.head = nn.Linear(16, 8)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.words(ids) + self.few(ids + 2))


def test_a_word_whose_computed_id_has_no_row_is_refused_in_one_sentence() -> None:
    torch.manual_seed(0)
    model, ids = Shifted().eval(), torch.randint(0, 10, (2, 9))
    chained = qk.compile(qk.quantize(model, "static", [ids]), ids)
    assert chained.report.unfused == []
    ids[1, 3] = 11
    with pytest.raises(RuntimeError, match=r"the id at \[1, 3\] is 13, outside \[0, 12\)"):
        chained(ids)
