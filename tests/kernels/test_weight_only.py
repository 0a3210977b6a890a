"""Float rows by an int8 weight: the order of the float sum is part of the contract."""

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from cases import (
    FLOATS,
    ISAS,
    assert_same_bits,
    draw_epilogue,
    epilogue_arguments,
    floats,
    int8,
    quick,
    rng,
    scales,
    to_numpy,
    to_torch,
)
from fence import fenced
from hypothesis import given
from torch import Tensor

from qkernels import _core, reference
from qkernels.reference import Epilogue

REMAINDERS = st.sampled_from([*range(1, 18), 31, 32, 33, 48, 53])


def run(x: Tensor, weight: Tensor, weight_scale: Tensor, e: Epilogue, **options: Any) -> Tensor:
    arrays = [to_numpy(x), _core.pack_weight(to_numpy(weight)), to_numpy(weight_scale)]
    if e.bias is not None:
        arrays.append(to_numpy(e.bias))
    steps = epilogue_arguments(e, e.residual)
    return to_torch(_core.linear_weight_only(*map(fenced, arrays), **steps, **options))


@st.composite
def problems(draw: Any) -> tuple[Tensor, Tensor, Tensor, Epilogue]:
    m, n, k, g = (
        draw(REMAINDERS),
        draw(REMAINDERS),
        draw(REMAINDERS),
        rng(draw(st.integers(0, 2**20))),
    )
    x = floats(g, m, k, dtype=draw(st.sampled_from(FLOATS)), nasty=draw(st.booleans()))
    return x, int8(g, n, k, low=-127), scales(g, n), draw_epilogue(draw, (m, n), g)


@given(problem=problems())
@quick(100)
def test_any_shape_and_epilogue(problem: tuple[Tensor, Tensor, Tensor, Epilogue]) -> None:
    expected = reference.linear_weight_only(*problem)
    for isa in ISAS:
        assert_same_bits(run(*problem, isa=isa), expected, isa)


@pytest.mark.parametrize(("m", "n", "k"), [(1, 193, 211), (37, 130, 129), (3, 7, 1000)])
def test_larger_shapes_and_threads(m: int, n: int, k: int) -> None:
    g = rng(m)
    problem = (
        floats(g, m, k),
        int8(g, n, k, low=-127),
        scales(g, n),
        Epilogue(torch.randn(n, generator=g)),
    )
    expected = reference.linear_weight_only(*problem)
    for isa in ISAS:
        for threads in (1, 2, 3):
            assert_same_bits(
                run(*problem, isa=isa, threads=threads), expected, f"{isa}, {threads} threads"
            )


def test_close_to_a_float_matmul() -> None:
    g = rng(0)
    x, weight, weight_scale = floats(g, 9, 400), int8(g, 21, 400, low=-127), scales(g, 21)
    expected = x.double() @ (weight.double() * weight_scale.double().view(-1, 1)).T
    torch.testing.assert_close(
        run(x, weight, weight_scale, Epilogue()).double(), expected, rtol=1e-5, atol=1e-4
    )
