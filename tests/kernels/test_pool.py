"""int8 pooling of every instruction set against the oracle."""

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from cases import ISAS, ZERO_POINTS, assert_same_bits, int8, quick, rng, to_torch
from hypothesis import given
from torch import Tensor

from qkernels import _core, reference

Pair = tuple[int, int]


@st.composite
def geometries(draw: Any) -> dict[str, Any]:
    kernel, stride = (draw(st.tuples(st.integers(1, 4), st.integers(1, 4))) for _ in range(2))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    return {
        "kernel_size": kernel,
        "stride": stride,
        "padding": padding,
        "ceil_mode": draw(st.booleans()),
    }


def images(draw: Any, geometry: dict[str, Any], dilation: Pair) -> Tensor:
    sides = [
        max(d * (k - 1) + 1 - 2 * p, 1) + draw(st.integers(0, 6))
        for k, p, d in zip(geometry["kernel_size"], geometry["padding"], dilation, strict=True)
    ]
    g = rng(draw(st.integers(0, 2**20)))
    return int8(g, draw(st.integers(1, 2)), draw(st.sampled_from([1, 3, 15, 16, 17, 33])), *sides)


def run(x: Tensor, isa: str, *, dilation: Pair = (1, 1), average: bool, **options: Any) -> Tensor:
    nhwc = np.ascontiguousarray(x.permute(0, 2, 3, 1).numpy())
    if average:
        y = _core.avg_pool2d(nhwc, isa=isa, **{"zero_point": 0, **options})
    else:
        y = _core.max_pool2d(nhwc, dilation=dilation, isa=isa, **options)
    return to_torch(y).permute(0, 3, 1, 2)


@st.composite
def max_pools(draw: Any) -> tuple[Tensor, dict[str, Any]]:
    geometry, dilation = draw(geometries()), draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    return images(draw, geometry, dilation), {**geometry, "dilation": dilation}


@given(case=max_pools(), threads=st.integers(1, 3))
@quick(200)
def test_max_pool(case: tuple[Tensor, dict[str, Any]], threads: int) -> None:
    x, geometry = case
    expected = reference.max_pool2d(x, **geometry)
    for isa in ISAS:
        assert_same_bits(run(x, isa, average=False, threads=threads, **geometry), expected, isa)


@st.composite
def avg_pools(draw: Any) -> tuple[Tensor, dict[str, Any]]:
    geometry = draw(geometries())
    return images(draw, geometry, (1, 1)), {**geometry, "count_include_pad": draw(st.booleans())}


@given(case=avg_pools(), zero_point=st.sampled_from(ZERO_POINTS), threads=st.integers(1, 3))
@quick(200)
def test_avg_pool(case: tuple[Tensor, dict[str, Any]], zero_point: int, threads: int) -> None:
    x, geometry = case
    expected = reference.avg_pool2d(x, zero_point, **geometry)
    for isa in ISAS:
        got = run(x, isa, average=True, zero_point=zero_point, threads=threads, **geometry)
        assert_same_bits(got, expected, isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("value", [-128, 127])
def test_extremes_stay(value: int, isa: str) -> None:
    x = torch.full((1, 18, 9, 9), value, dtype=torch.int8)
    for average in (False, True):
        y = run(
            x,
            isa,
            average=average,
            kernel_size=(9, 9),
            stride=(1, 1),
            padding=(0, 0),
        )
        assert y.eq(value).all()


@pytest.mark.parametrize("isa", ISAS)
def test_halves_round_to_even(isa: str) -> None:
    x = torch.tensor(
        [[1, 2], [3, 4], [-1, -2], [-3, -4], [126, 127], [-127, -128]], dtype=torch.int8
    ).view(6, 1, 1, 2)
    y = run(
        x,
        isa,
        average=True,
        kernel_size=(1, 2),
        stride=(1, 1),
        padding=(0, 0),
    )
    assert y.flatten().tolist() == [2, 4, -2, -4, 126, -128]
