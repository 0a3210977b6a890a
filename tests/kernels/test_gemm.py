"""The int8 GEMM of every instruction set against the oracle, bit for bit."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from cases import (
    FLOATS,
    ISAS,
    SIZES,
    Linear,
    assert_every_isa,
    assert_same_bits,
    floats,
    int8,
    linears,
    quick,
    rng,
    scales,
    variants,
    zero_points,
)
from hypothesis import given

from qkernels import _core
from qkernels.reference import Epilogue

every_isa = pytest.mark.parametrize("isa", ISAS)


def plain(x: torch.Tensor, weight: torch.Tensor, zero_point: int = 0, **epilogue: Any) -> Linear:
    """A problem whose float output is the integer sum."""
    scale, zero = torch.ones(1), torch.tensor([zero_point], dtype=torch.int32)
    return Linear(x, weight, torch.ones(len(weight)), scale, zero, True, Epilogue(**epilogue))


def some_linear(m: int, n: int, k: int, seed: int = 0, **epilogue: Any) -> Linear:
    g = rng(seed)
    operands = (
        int8(g, m, k),
        int8(g, n, k, low=-127),
        scales(g, n),
        scales(g, m),
        zero_points(g, m),
    )
    return Linear(*operands, True, Epilogue(bias=torch.randn(n, generator=g), **epilogue))


@given(problem=linears([torch.int8]))
@quick(400)
def test_int8_input_of_any_shape(problem: Linear) -> None:
    assert_every_isa(problem)


@given(problem=linears(FLOATS))
@quick(400)
def test_float_input_static_and_dynamic(problem: Linear) -> None:
    assert_every_isa(problem)


@every_isa
def test_every_row_remainder(isa: str) -> None:
    whole = some_linear(max(SIZES), 35, 67)
    expected = whole.expected()
    for m in SIZES:
        part = Linear(
            whole.x[:m],
            whole.weight,
            whole.weight_scale,
            whole.scale[:m],
            whole.zero_point[:m],
            True,
            whole.epilogue,
        )
        assert_same_bits(part.run(isa), expected[:m], f"M={m}")


@every_isa
def test_every_column_remainder(isa: str) -> None:
    whole = some_linear(35, max(SIZES), 67)
    expected = whole.expected()
    for n in SIZES:
        epilogue = Epilogue(bias=whole.epilogue.bias[:n])
        part = Linear(
            whole.x,
            whole.weight[:n],
            whole.weight_scale[:n],
            whole.scale,
            whole.zero_point,
            True,
            epilogue,
        )
        assert_same_bits(part.run(isa), expected[:, :n].contiguous(), f"N={n}")


@pytest.mark.parametrize("m", [1, 5, 33])
def test_every_depth_remainder(m: int) -> None:
    for k in SIZES:
        assert_every_isa(some_linear(m, 33, k, seed=k))


# ---- extremes


@pytest.mark.parametrize("k", [1, 2, 63, 64, 65, 4097, _core.MAX_K])
@pytest.mark.parametrize("zero_point", [-128, 0, 127])
@pytest.mark.parametrize("x", [-128, 127])
def test_no_sum_overflows(x: int, zero_point: int, k: int) -> None:
    weight = torch.full((3, k), 127, dtype=torch.int8)
    weight[1] = -127
    weight[2, ::2] = -127
    problem = plain(torch.full((5, k), x, dtype=torch.int8), weight, zero_point)
    assert_every_isa(problem)
    total = (x - zero_point) * 127 * k
    last = torch.tensor([total, -total, -(total // k) * (k % 2)]).float()
    assert torch.equal(problem.expected()[0], last)


@every_isa
def test_pairs_do_not_saturate_at_16_bits(isa: str) -> None:
    # oneDNN's example: 255 * 127 + 255 * 127 = 64770, which vpmaddubsw alone makes 32767.
    problem = plain(
        torch.full((4, 2), 127, dtype=torch.int8), torch.full((16, 2), 127, dtype=torch.int8), -128
    )
    assert problem.run(isa).unique().tolist() == [64770]


@given(seed=st.integers(0, 2**20), k=st.sampled_from([1, 7, 64, 130, 1000]))
@quick(20)
def test_only_extreme_values(seed: int, k: int) -> None:
    g = rng(seed)
    x = torch.tensor([-128, -127, 127], dtype=torch.int8)[torch.randint(3, (13, k), generator=g)]
    weight = torch.tensor([-127, 127], dtype=torch.int8)[torch.randint(2, (19, k), generator=g)]
    assert_every_isa(
        Linear(x, weight, torch.ones(19), torch.ones(13), zero_points(g, 13), True, Epilogue())
    )


@pytest.mark.parametrize("x_scale", [1e-38, 1e-30, 3e38])
@pytest.mark.parametrize("w_scale", [3e-39, 1e-20, 3e38])
def test_scales_whose_product_is_denormal_or_infinite(x_scale: float, w_scale: float) -> None:
    problem = some_linear(7, 21, 40)
    problem.scale, problem.weight_scale = torch.full((7,), x_scale), torch.full((21,), w_scale)
    for out_dtype in (*FLOATS, torch.int8):
        assert_every_isa(variants(problem, out_dtype=out_dtype))


# ---- input that is not ordinary


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "value", [0.0, -0.0, 1e-45, 1e-31, torch.nan, torch.inf, -torch.inf, 3.4e38]
)
@pytest.mark.parametrize("symmetric", [True, False])
def test_rows_of_one_value(value: float, symmetric: bool, dtype: torch.dtype) -> None:
    x = torch.full((3, 20), value).to(dtype)
    x[1, ::2] = 1.0
    x[2, 5] = -value
    g = rng(0)
    assert_every_isa(
        Linear(x, int8(g, 18, 20, low=-127), scales(g, 18), None, None, symmetric, Epilogue())
    )


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_row_of_zeros_gives_the_bias(symmetric: bool) -> None:
    g = rng(0)
    bias = torch.randn(5, generator=g)
    problem = Linear(
        torch.zeros(2, 9),
        int8(g, 5, 9, low=-127),
        scales(g, 5),
        None,
        None,
        symmetric,
        Epilogue(bias),
    )
    for isa in ISAS:
        assert_same_bits(problem.run(isa), bias.expand(2, 5), isa)


def test_a_row_does_not_depend_on_its_batch() -> None:
    g = rng(0)
    x, weight, weight_scale = floats(g, 40, 70), int8(g, 33, 70, low=-127), scales(g, 33)
    whole = Linear(x, weight, weight_scale, None, None, False, Epilogue())
    for isa in ISAS:
        rows = [
            Linear(row[None], weight, weight_scale, None, None, False, Epilogue()).run(isa)
            for row in x
        ]
        assert_same_bits(torch.cat(rows), whole.run(isa), isa)


# ---- threads


@every_isa
@pytest.mark.parametrize("shape", [(130, 193, 257), (1, 3000, 700), (3000, 3, 300)])
def test_threads_do_not_change_a_byte(shape: tuple[int, int, int], isa: str) -> None:
    problem = some_linear(*shape, residual=torch.randn(shape[:2], generator=rng(1)), clamp_min=0.0)
    one = problem.run(isa, threads=1)
    for threads in (2, 3, 256):
        assert_same_bits(problem.run(isa, threads=threads), one, f"{threads} threads")


@every_isa
def test_callers_from_many_python_threads_agree(isa: str) -> None:
    problems = [some_linear(40 + i, 60, 129, seed=i) for i in range(8)]
    expected = [p.run(isa) for p in problems]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda i: problems[i % 8].run(isa, threads=1 + i % 2), range(64)))
    for i, y in enumerate(got):
        assert_same_bits(y, expected[i % 8], f"call {i}")
