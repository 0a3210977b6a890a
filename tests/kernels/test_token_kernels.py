"""Layer normalization and attention of every instruction set: the order of their float sums is part of the contract."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from cases import (
    ISAS,
    ZERO_POINTS,
    assert_same_bits,
    epilogue_arguments,
    floats,
    quick,
    rng,
    to_numpy,
    to_torch,
)
from fence import fenced
from hypothesis import given
from torch import Tensor
from torch.nn import functional as F

from qkernels import _core, reference
from qkernels.reference import Epilogue

WIDTHS = st.sampled_from([*range(1, 19), 31, 32, 33, 63, 64, 65, 100, 384])
OUTPUTS = st.sampled_from([torch.float32, torch.int8, torch.bfloat16])
THREADS = st.integers(1, 3)


def draw_output(draw: Any) -> Epilogue:
    e = Epilogue(out_dtype=draw(OUTPUTS))
    if e.out_dtype == torch.int8:
        e.output_scale = draw(st.sampled_from([0.037, 0.0625]))  # a power of two makes ties
        e.output_zero_point = draw(st.sampled_from(ZERO_POINTS))
    return e


def output_arguments(e: Epilogue) -> dict[str, Any]:
    names = ("out_dtype", "output_scale", "output_zero_point")
    return {name: epilogue_arguments(e, None)[name] for name in names}


Norm = tuple[Tensor, Tensor, Tensor, float, Epilogue]


@st.composite
def norms(draw: Any) -> Norm:
    rows, c, g = draw(st.integers(0, 9)), draw(WIDTHS), rng(draw(st.integers(0, 2**20)))
    x = floats(g, rows, c, nasty=draw(st.booleans())) * draw(st.sampled_from([1.0, 1e-3, 50.0]))
    weight, bias = floats(g, c), floats(g, c)
    return x, weight, bias, draw(st.sampled_from([1e-5, 1e-12, 0.0, 0.1])), draw_output(draw)


def run_norm(problem: Norm, **options: Any) -> Tensor:
    x, weight, bias, epsilon, e = problem
    arrays = [fenced(to_numpy(v)) for v in (x, weight, bias)]
    return to_torch(_core.layer_norm(*arrays, epsilon, **output_arguments(e), **options))


@given(problem=norms(), threads=THREADS)
@quick(150)
def test_layer_norm_adds_in_the_order_of_the_reference(problem: Norm, threads: int) -> None:
    expected = reference.layer_norm(*problem)
    for isa in ISAS:
        assert_same_bits(run_norm(problem, isa=isa, threads=threads), expected, isa)


@pytest.mark.parametrize(("rows", "c"), [(5, 384), (3, 1000), (200, 768)])
def test_layer_norm_is_close_to_torch_in_double(rows: int, c: int) -> None:
    g = rng(c)
    x, weight, bias = floats(g, rows, c) * 3 + 1, floats(g, c), floats(g, c)
    exact = F.layer_norm(x.double(), (c,), weight.double(), bias.double(), 1e-5)
    got = run_norm((x, weight, bias, 1e-5, Epilogue()), threads=2)
    assert (got.double() - exact).abs().max() < 2e-6 * exact.abs().max()


Attention = tuple[Tensor, int, float, Epilogue]


@st.composite
def attentions(draw: Any) -> Attention:
    n, heads, width = (
        draw(st.integers(0, 2)),
        draw(st.integers(1, 3)),
        draw(WIDTHS.filter(lambda w: w < 101)),
    )
    t = draw(st.sampled_from([*range(1, 18), 31, 32, 33, 63, 64, 65, 77]))
    g = rng(draw(st.integers(0, 2**20)))
    x = floats(g, n, t, 3 * heads * width, nasty=draw(st.booleans()))
    x = x * draw(st.sampled_from([1.0, 0.1, 8.0]))
    return x, heads, draw(st.sampled_from([1.0, 0.125, 1.4])), draw_output(draw)


def packed_attention(x: Tensor, heads: int, exponent: float, e: Epilogue) -> Tensor:
    query, key, value = (reference.heads_of(part, heads) for part in x.chunk(3, -1))
    return reference.attention(query, key, value, exponent, e)


def run_attention(problem: Attention, **options: Any) -> Tensor:
    x, heads, exponent, e = problem
    y = _core.attention(fenced(to_numpy(x)), heads, exponent, **output_arguments(e), **options)
    return to_torch(y)


@given(problem=attentions(), threads=THREADS)
@quick(100)
def test_attention_adds_in_the_order_of_the_reference(problem: Attention, threads: int) -> None:
    expected = packed_attention(*problem)
    for isa in ISAS:
        assert_same_bits(run_attention(problem, isa=isa, threads=threads), expected, isa)


@pytest.mark.parametrize(("t", "heads", "width"), [(128, 6, 64), (197, 3, 32), (50, 2, 80)])
def test_attention_is_close_to_torch_in_double_and_the_same_on_every_thread_count(
    t: int, heads: int, width: int
) -> None:
    x = floats(rng(t), 2, t, 3 * heads * width)
    query, key, value = x.double().view(2, t, 3, heads, width).permute(2, 0, 3, 1, 4)
    exact = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    problem = (x, heads, 1 / math.sqrt(width) / math.log(2), Epilogue())
    got = run_attention(problem)
    assert (got.double() - exact).abs().max() < 1e-6 * exact.abs().max()
    for isa in ISAS:
        for threads in (1, 2, 3):
            if isa != "amx_emulated":  # the scalar one's source
                assert_same_bits(run_attention(problem, isa=isa, threads=threads), got, isa)
    assert_same_bits(run_attention((x[1:], *problem[1:])), got[1:], "alone in its batch")


def test_powers_of_two_are_within_a_few_units_in_the_last_place() -> None:
    t = torch.cat([torch.linspace(-126, 0, 100_001), torch.linspace(-1, 0, 10_001)])
    exact = torch.exp2(t.double())
    assert ((reference.exp2(t).double() - exact) / exact).abs().max() < 2.5e-7
    limits = torch.tensor([-127.0, -1e30, -torch.inf, torch.nan])
    assert (reference.exp2(limits) == 0).all()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda x: _core.layer_norm(x, x[0, :3], x[0], 1e-5), "weight has 3 values and bias 6; 6 are needed"),
        (lambda x: _core.layer_norm(x, x[0], x[0], -1.0), "epsilon is -1"),
        (lambda x: _core.layer_norm(x, x[0], x[0], 1e-5, clamp_min=0.0), "residual or clamp is not taken"),
        (lambda x: _core.attention(x, 1, 1.0), r"x must be \[N, T, 3 \* C\]"),
        (lambda x: _core.attention(x[None], 4, 1.0), "x has 6 features, no multiple of 3 times heads=4"),
        (lambda x: _core.attention(x[None], 2, 0.0), "exponent is 0"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_named(call: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call(np.zeros((2, 6), np.float32))
