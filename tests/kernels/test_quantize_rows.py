"""Quantization by itself: given and found ranges, every float type, and back."""

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from cases import (
    FLOATS,
    ISAS,
    NAMES,
    assert_same_bits,
    floats,
    int8,
    quick,
    rng,
    scales,
    to_numpy,
    to_torch,
    zero_points,
)
from hypothesis import given
from torch import Tensor

from qkernels import _core, reference

every_isa = pytest.mark.parametrize("isa", ISAS)


@st.composite
def rows_of_floats(draw: Any) -> Tensor:
    g = rng(draw(st.integers(0, 2**20)))
    shape = draw(st.integers(1, 6)), draw(st.integers(1, 70))
    return floats(g, *shape, dtype=draw(st.sampled_from(FLOATS)), nasty=draw(st.booleans()))


@given(x=rows_of_floats(), per_row=st.booleans(), seed=st.integers(0, 99))
@quick(200)
def test_given_scales(x: Tensor, per_row: bool, seed: int) -> None:
    count, g = len(x) if per_row else 1, rng(seed)
    scale, zero = scales(g, count), zero_points(g, count)
    expected = reference.quantize(x, scale, zero)
    for isa in ISAS:
        q, s, z = _core.quantize(to_numpy(x), scale.numpy(), zero.numpy(), isa=isa)
        assert_same_bits(to_torch(q), expected, isa)
        assert (s == scale.numpy()).all()
        assert (z == zero.numpy()).all()


@given(
    x=rows_of_floats(), per_row=st.booleans(), symmetric=st.booleans(), threads=st.integers(1, 3)
)
@quick(200)
def test_found_ranges(x: Tensor, per_row: bool, symmetric: bool, threads: int) -> None:
    scale, zero = reference.dynamic_scale(x if per_row else x.reshape(1, -1), symmetric=symmetric)
    expected = reference.quantize(x, scale, zero)
    for isa in ISAS:
        q, s, z = _core.quantize(
            to_numpy(x), per_row=per_row, symmetric=symmetric, isa=isa, threads=threads
        )
        assert_same_bits(to_torch(s), scale, isa)
        assert_same_bits(to_torch(z), zero, isa)
        assert_same_bits(to_torch(q), expected, isa)


@given(
    seed=st.integers(0, 99),
    rows=st.integers(1, 5),
    cols=st.integers(1, 40),
    per_row=st.booleans(),
    dtype=st.sampled_from(FLOATS),
)
@quick(100)
def test_dequantize(seed: int, rows: int, cols: int, per_row: bool, dtype: torch.dtype) -> None:
    g, count = rng(seed), rows if per_row else 1
    q, scale, zero = int8(g, rows, cols), scales(g, count, 0.1), zero_points(g, count)
    expected = reference.dequantize(q, scale, zero, dtype)
    for isa in ISAS:
        y = _core.dequantize(q.numpy(), scale.numpy(), zero.numpy(), NAMES[dtype], isa=isa)
        assert_same_bits(to_torch(y), expected, isa)


@every_isa
def test_halves_round_to_even(isa: str) -> None:
    x = np.arange(-130.5, 131.0, 0.5, dtype=np.float32)[None]
    q, _, _ = _core.quantize(x, np.ones(1, np.float32), np.zeros(1, np.int32), isa=isa)
    assert (q == np.clip(np.rint(x), -128, 127)).all()


@every_isa
@pytest.mark.parametrize("zero_point", [-128, 0, 127])
def test_nan_is_the_lowest_and_infinities_saturate(isa: str, zero_point: int) -> None:
    x = np.array([[np.nan, -np.inf, np.inf, 3e38, -3e38, 1e-45, -0.0]], np.float32)
    q, _, _ = _core.quantize(x, np.ones(1, np.float32), np.array([zero_point], np.int32), isa=isa)
    assert q[0].tolist() == [-128, -128, 127, 127, -128, zero_point, zero_point]


@every_isa
@pytest.mark.parametrize("symmetric", [True, False])
def test_real_zero_is_exact_whatever_the_range(symmetric: bool, isa: str) -> None:
    x = np.zeros((200, 3), np.float32)
    x[:, 1:] = floats(rng(0), 200, 2).numpy() + np.linspace(-5, 5, 200, dtype=np.float32)[:, None]
    q, _, zero = _core.quantize(x, per_row=True, symmetric=symmetric, isa=isa)
    assert (q[:, 0] == zero).all()
    assert (q != -128).any() or not symmetric


@every_isa
@pytest.mark.parametrize("per_row", [True, False])
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_nothing_to_quantize(shape: tuple[int, int], per_row: bool, isa: str) -> None:
    q, scale, zero = _core.quantize(np.zeros(shape, np.float32), per_row=per_row, isa=isa)
    assert q.shape == shape
    assert (scale == 1).all()
    assert (zero == 0).all()
    assert (
        _core.dequantize(q, np.ones(1, np.float32), np.zeros(1, np.int32), isa=isa).shape == shape
    )


@every_isa
def test_threads_do_not_change_a_byte(isa: str) -> None:
    x = floats(rng(0), 300, 1001).numpy()
    for per_row in (True, False):
        one = _core.quantize(x, per_row=per_row, symmetric=False, isa=isa, threads=1)
        for threads in (2, 3):
            for a, b in zip(
                _core.quantize(x, per_row=per_row, symmetric=False, isa=isa, threads=threads),
                one,
                strict=True,
            ):
                assert a.tobytes() == b.tobytes()


@every_isa
@pytest.mark.parametrize(
    ("low", "high"),
    [(-3e38, 3e38), (-3.4028235e38, 3.4028235e38), (-2e38, 3.3e38), (-3.4e38, 1e38)],
)
def test_a_range_wider_than_the_largest_float_keeps_both_of_its_ends(
    isa: str, low: float, high: float
) -> None:
    x = torch.tensor([[low, low / 2, 0.0, high / 3, high]])
    scale, zero = reference.dynamic_scale(x, symmetric=False)
    q = reference.quantize(x, scale, zero)
    back = (q.double() - zero) * scale.double()
    assert float((back - x.double()).abs().max()) <= 0.51 * float(scale)
    got = _core.quantize(x.numpy(), per_row=True, symmetric=False, isa=isa)
    assert torch.equal(torch.from_numpy(got[0]), q)
    assert float(got[1][0]) == float(scale)
    assert int(got[2][0]) == int(zero)
