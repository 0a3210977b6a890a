"""float16 and bfloat16, in and out, as NumPy and torch convert them: all halves, ties, overflow, denormals."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from cases import FLOATS, ISAS, NAMES, assert_same_bits, quick, rng, to_numpy, to_torch
from hypothesis import given
from torch import Tensor

from qkernels import _core

every_isa = pytest.mark.parametrize("isa", ISAS)
every_half = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])


def all_values(dtype: torch.dtype) -> Tensor:
    return torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(dtype)


def without_nan(x: Tensor) -> Tensor:
    """The contract's clamp makes NaN the lower bound, here -infinity."""
    return torch.where(x.isnan(), -torch.inf, x)


def through_residual(x: Tensor, out_dtype: torch.dtype, isa: str) -> Tensor:
    """`out_dtype(0 + x)`: a linear layer of zeros with x as its residual."""
    rows = to_numpy(x.reshape(-1, 32))
    packed, one = _core.pack_weight(np.zeros((32, 1), np.int8)), np.ones(32, np.float32)
    q = np.zeros((len(rows), 1), np.int8)
    y = _core.linear(
        q,
        packed,
        one,
        None,
        one[:1],
        np.zeros(1, np.int32),
        residual=rows,
        out_dtype=NAMES[out_dtype],
        isa=isa,
    )
    return to_torch(y).reshape(-1)


def through_weight_only(x: Tensor, isa: str) -> Tensor:
    packed, one = _core.pack_weight(np.ones((1, 1), np.int8)), np.ones(1, np.float32)
    return to_torch(
        _core.linear_weight_only(to_numpy(x.view(-1, 1)), packed, one, isa=isa)
    ).reshape(-1)


def assert_stored_alike(x: Tensor, dtype: torch.dtype, isa: str) -> None:
    expected = without_nan(x + 0.0).to(dtype)  # 0 + -0 is 0
    got = through_residual(x, dtype, isa)
    assert_same_bits(got, expected, isa)
    if dtype == torch.float16:
        with np.errstate(over="ignore"):
            as_numpy = without_nan(x + 0.0).numpy().astype(np.float16)
        assert_same_bits(got, torch.from_numpy(as_numpy), f"{isa} against NumPy")


@every_isa
@every_half
def test_every_half_is_read(dtype: torch.dtype, isa: str) -> None:
    x = all_values(dtype)
    expected = without_nan(x.float() + 0.0)
    assert_same_bits(through_residual(x, torch.float32, isa), expected, f"{isa}, residual")
    assert_same_bits(through_weight_only(x, isa), expected, f"{isa}, weight only")


@every_isa
@every_half
def test_every_half_and_its_neighbours_are_stored(dtype: torch.dtype, isa: str) -> None:
    x = without_nan(all_values(dtype).float())
    middle = x + (torch.roll(x, -1) - x) / 2  # ties
    around = [x, middle, torch.nextafter(middle, x), torch.nextafter(middle, torch.roll(x, -1))]
    assert_stored_alike(torch.cat(around), dtype, isa)


@every_isa
@every_half
def test_float_bits_of_every_kind_are_stored(dtype: torch.dtype, isa: str) -> None:
    bits = torch.randint(-(2**31), 2**31, (1 << 18,), generator=rng(0)).int()
    assert_stored_alike(bits.view(torch.float32), dtype, isa)


@every_isa
def test_overflow_and_denormals_of_float16(isa: str) -> None:
    x = torch.tensor(
        [65504.0, 65519.996, 65520.0, 1e6, 2.0**-24, 2.0**-25, 2.0**-25 * 1.0001, 1e-9]
    ).repeat(4)
    expected = torch.tensor(
        [65504.0, 65504.0, torch.inf, torch.inf, 2.0**-24, 0.0, 2.0**-24, 0.0]
    ).repeat(4)
    assert_same_bits(through_residual(x, torch.float16, isa), expected.half(), isa)
    assert_same_bits(through_residual(-x, torch.float16, isa), -expected.half(), isa)


@every_isa
@pytest.mark.parametrize("dtype", FLOATS)
def test_dequantize_of_every_integer(dtype: torch.dtype, isa: str) -> None:
    q = torch.arange(-128, 128).to(torch.int8).repeat(17, 1)
    scale = torch.tensor(
        [1.0, 0.1, 3e38, 1e-38, 2.0**-24, 2.0**-25, 2.0**-31, *[0.01 * i for i in range(1, 11)]]
    )
    zero = torch.arange(-128, 127, 16)[:17].int()
    zero = torch.cat([zero, zero.new_full((17 - len(zero),), 127)])
    y = _core.dequantize(q.numpy(), scale.numpy(), zero.numpy(), NAMES[dtype], isa=isa)
    expected = ((q.int() - zero.view(-1, 1)).float() * scale.view(-1, 1)).to(dtype)
    assert_same_bits(to_torch(y), expected, isa)


@given(values=st.lists(st.floats(width=32), min_size=32, max_size=32), isa=st.sampled_from(ISAS))
@quick(100)
def test_floats_that_hypothesis_likes(values: list[float], isa: str) -> None:
    for dtype in FLOATS:
        x = torch.tensor(values)
        assert_same_bits(through_residual(x, dtype, isa), without_nan(x + 0.0).to(dtype), isa)
