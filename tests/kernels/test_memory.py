"""Kernels touch what they are handed and nothing else, wherever it lies."""

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from cases import (
    ISAS,
    Conv2d,
    Linear,
    assert_same_bits,
    convs,
    linears,
    quick,
    some_conv,
    to_numpy,
    to_torch,
)
from fence import fenced, guarded
from hypothesis import given

from qkernels import _core

isas = st.sampled_from(ISAS)
shifts = st.sampled_from([0, 1, 3, 4, 17])


def at_fences(arrays: dict[str, Any]) -> dict[str, Any]:
    return {key: fenced(a) if isinstance(a, np.ndarray) else a for key, a in arrays.items()}


def fenced_output(problem: Linear | Conv2d) -> np.ndarray:
    y = to_numpy(problem.expected())
    return fenced(np.zeros_like(y if y.ndim == 2 else y.transpose(0, 2, 3, 1)))


@given(problem=linears(), isa=isas, threads=st.integers(1, 3))
@quick(200)
def test_linear_reads_and_writes_nothing_past_an_end(
    problem: Linear, isa: str, threads: int
) -> None:
    arrays = at_fences(problem.arrays())
    y = problem.run(isa, **arrays, out=fenced_output(problem), threads=threads)
    assert_same_bits(y, problem.expected(), isa)


@given(problem=convs(), isa=isas, threads=st.integers(1, 3), planes=st.booleans())
@quick(200)
def test_conv2d_reads_and_writes_nothing_past_an_end(
    problem: Conv2d, isa: str, threads: int, planes: bool
) -> None:
    arrays = at_fences(problem.arrays())
    if planes:
        arrays["x"] = fenced(to_numpy(problem.x)).transpose(0, 2, 3, 1)
    y = problem.run(isa, **arrays, out=fenced_output(problem), threads=threads)
    assert_same_bits(y, problem.expected(), isa)


@pytest.mark.parametrize("kernel", [(8, 8), (4, 16), (16, 4)])
@pytest.mark.parametrize("isa", ISAS)
def test_depthwise_weights_that_fill_their_panel_are_not_read_past(
    isa: str, kernel: tuple[int, int]
) -> None:
    problem = some_conv(16, 16, 16, kernel, (17, 17))
    y = problem.run(isa, **at_fences(problem.arrays()), out=fenced_output(problem))
    assert_same_bits(y, problem.expected(), isa)


@given(problem=linears(), isa=isas, shift=shifts)
@quick(100)
def test_bytes_around_the_output_of_linear_stay(problem: Linear, isa: str, shift: int) -> None:
    expected = problem.expected()
    buffer, out = guarded(expected.shape, to_numpy(expected).dtype, shift)
    assert_same_bits(problem.run(isa, out=out), expected, isa)
    assert (buffer[: 64 + shift] == 0x5A).all()
    assert (buffer[64 + shift + out.nbytes :] == 0x5A).all()


@given(problem=convs(), isa=isas, shift=shifts)
@quick(100)
def test_bytes_around_the_output_of_conv2d_stay(problem: Conv2d, isa: str, shift: int) -> None:
    expected = problem.expected().permute(0, 2, 3, 1)
    buffer, out = guarded(expected.shape, to_numpy(expected).dtype, shift)
    assert_same_bits(problem.run(isa, out=out).permute(0, 2, 3, 1), expected, isa)
    assert (buffer[: 64 + shift] == 0x5A).all()
    assert (buffer[64 + shift + out.nbytes :] == 0x5A).all()


@given(
    problem=linears(),
    isa=isas,
    shift=shifts,
    extra=st.sampled_from([1, 5, 64]),
    reverse=st.booleans(),
)
@quick(100)
def test_rows_further_apart_than_they_are_long(
    problem: Linear, isa: str, shift: int, extra: int, reverse: bool
) -> None:
    x = to_numpy(problem.x)
    _, wide = guarded((x.shape[0], x.shape[1] + extra), x.dtype, shift)
    inside = wide[::-1, extra:] if reverse else wide[:, extra:]
    inside[...] = x
    before = wide.copy()
    assert_same_bits(problem.run(isa, x=inside), problem.expected(), isa)
    assert wide.tobytes() == before.tobytes()


@given(problem=linears(), isa=isas, shift=shifts)
@quick(60)
def test_operands_at_any_address(problem: Linear, isa: str, shift: int) -> None:
    arrays = problem.arrays()
    for key, a in arrays.items():
        if isinstance(a, np.ndarray):
            _, arrays[key] = guarded(a.shape, a.dtype, shift)
            arrays[key][...] = a
            arrays[key].flags.writeable = False
    assert_same_bits(problem.run(isa, **arrays), problem.expected(), isa)


@given(
    rows=st.integers(1, 5),
    cols=st.integers(1, 80),
    isa=isas,
    dtype=st.sampled_from(["float32", "float16", "uint16"]),
)
@quick(60)
def test_quantize_reads_nothing_past_an_end(rows: int, cols: int, isa: str, dtype: str) -> None:
    x = np.arange(rows * cols).reshape(rows, cols).astype(dtype)
    given = {"scale": np.ones(rows, np.float32), "zero_point": np.zeros(rows, np.int32)}
    for options in ({}, {"per_row": True}, given):
        behind = {k: fenced(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
        found = _core.quantize(fenced(x), **behind, isa=isa)
        expected = _core.quantize(x, **options, isa=isa)
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
        y = _core.dequantize(*map(fenced, found), isa=isa)
        assert np.array_equal(y, _core.dequantize(*expected, isa=isa))


@pytest.mark.parametrize("isa", ISAS)
def test_pool_reads_nothing_past_an_end(isa: str) -> None:
    for c in range(1, 35):
        x = fenced(np.full((1, 3, 3, c), 7, np.int8))
        for y in (
            _core.max_pool2d(x, (2, 2), (1, 1), (0, 0), (1, 1), isa=isa),
            _core.avg_pool2d(x, 0, (2, 2), (1, 1), (0, 0), isa=isa),
        ):
            assert to_torch(y).eq(7).all()
