"""Activations behind products: in float32, in the epilogue, the bits of the function itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from value_steps import OneStep, floats, one_step, operands, outputs, quick

from qkernels import _core, reference
from qkernels.reference import FUNCTIONS, Epilogue, Operand

FUNCTION = st.sampled_from(list(FUNCTIONS))
THREADS = st.integers(1, 3)


@st.composite
def epilogues(draw: Any, n: int) -> Epilogue:
    e = draw(outputs())
    e.activation, e.parameter = draw(FUNCTION), draw(st.sampled_from([1.0, 0.25, 1.702]))
    e.bias = floats(draw(st.integers(0, 99)), (n,))
    e.clamp_min, e.clamp_max = draw(st.sampled_from([(None, None), (-1.0, 2.5)]))
    return e


def product(
    e: Epilogue, weight: torch.Tensor, groups: int = 1
) -> tuple[dict[str, Any], dict[str, np.ndarray], torch.Tensor]:
    """Fields and constants of a layer, and the scale of its weight."""
    n = weight.shape[0]
    scale = torch.linspace(0.005, 0.02, n)
    assert e.bias is not None
    packed = (
        _core.pack_weight(weight.numpy(), groups)
        if groups > 1
        else _core.pack_weight(weight.numpy())
    )
    constants = {"weight": packed, "w_scale": scale.numpy(), "bias": e.bias.numpy()}
    fields = {"x_scale": 0.03, "x_zero": 3, "activation": e.activation, "parameter": e.parameter}
    return fields, constants, scale


def with_residual(
    data: Any, e: Epilogue, size: tuple[int, ...]
) -> tuple[Epilogue, list[Operand], dict[str, Any]]:
    if not data.draw(st.booleans()):
        return e, [], {}
    r = data.draw(operands(size))
    fields = {"residual_scale": r.scale, "residual_zero": r.zero_point}
    given = replace(e, residual=r.values, residual_scale=r.scale, residual_zero_point=r.zero_point)
    return given, [r], fields


@given(
    data=st.data(), rows=st.sampled_from([0, 1, 2, 7, 13, 33, 70]), k=st.sampled_from([1, 5, 64, 100]),
    n=st.sampled_from([1, 3, 15, 16, 17, 31, 32, 48, 70]), threads=THREADS,
)  # fmt: skip
@quick(150)
def test_a_linear_layer_ends_in_the_bits_of_the_function(
    data: Any, rows: int, k: int, n: int, threads: int
) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    x = Operand(torch.from_numpy(random.integers(-128, 128, (rows, k)).astype(np.int8)))
    weight = torch.from_numpy(random.integers(-127, 128, (n, k)).astype(np.int8))
    e, residual, more = with_residual(data, data.draw(epilogues(n)), (rows, n))
    fields, constants, scale = product(e, weight)
    expected = reference.linear(x.values, weight, scale, torch.tensor([0.03]), torch.tensor([3]), e)
    step = OneStep("linear", {"k": k, **fields, **more}, e, (rows, n), constants)
    step.check([x, *residual], expected, threads)


@given(data=st.data(), rows=st.integers(1, 40), threads=THREADS)
@quick(30)
def test_a_layer_of_dynamic_ranges_does_as_well(data: Any, rows: int, threads: int) -> None:
    x = floats(data.draw(st.integers(0, 99)), (rows, 24))
    weight = torch.from_numpy(
        np.random.default_rng(rows).integers(-127, 128, (33, 24)).astype(np.int8)
    )
    e = data.draw(epilogues(33))
    fields, constants, scale = product(e, weight)
    x_scale, zero = reference.dynamic_scale(x, symmetric=True)
    expected = reference.linear(
        reference.quantize(x, x_scale, zero), weight, scale, x_scale, zero, e
    )
    fields |= {"k": 24, "range": "dynamic_symmetric"}
    OneStep("linear", fields, e, (rows, 33), constants).check([Operand(x)], expected, threads)


@given(
    data=st.data(), groups=st.sampled_from(["one", "two", "each"]), kernel=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 2), c=st.sampled_from([4, 16, 24, 40, 64]),
    size=st.tuples(st.integers(5, 9), st.integers(5, 80)), threads=THREADS,
)  # fmt: skip
@quick(150)
def test_a_convolution_ends_in_the_bits_of_the_function(
    data: Any, groups: str, kernel: int, stride: int, c: int, size: tuple[int, int], threads: int
) -> None:
    random, (h, w) = np.random.default_rng(data.draw(st.integers(0, 99))), size
    count, oc = {"one": (1, 20), "two": (2, 20), "each": (c, c)}[groups]
    x = Operand(torch.from_numpy(random.integers(-128, 128, (2, h, w, c)).astype(np.int8)))
    weight = torch.from_numpy(
        random.integers(-127, 128, (oc, c // count, kernel, kernel)).astype(np.int8)
    )
    oh, ow = (h - 1) // stride + 1, (w - 1) // stride + 1
    e, residual, more = with_residual(data, data.draw(epilogues(oc)), (2, oh, ow, oc))
    fields, constants, scale = product(e, weight, count)
    if e.residual is not None:
        e.residual = e.residual.permute(0, 3, 1, 2)
    pad = kernel // 2
    expected = reference.conv2d(
        x.values.permute(0, 3, 1, 2), weight, scale, torch.tensor([0.03]), torch.tensor([3]), e,
        stride=(stride, stride), padding=(pad, pad, pad, pad), groups=count,
    )  # fmt: skip
    fields |= {"kh": kernel, "kw": kernel, "stride_h": stride, "stride_w": stride, "groups": count}
    fields |= {f"pad_{side}": pad for side in ("top", "bottom", "left", "right")}
    step = OneStep("conv2d", {**fields, **more}, e, (2, oh, ow, oc), constants)
    step.check([x, *residual], expected.permute(0, 2, 3, 1), threads)


@pytest.mark.parametrize("size", [(1, 30, 28, 64), (2, 15, 13, 96)])
def test_a_layer_large_enough_for_winograd_does_as_well(size: tuple[int, int, int, int]) -> None:
    random, c = np.random.default_rng(0), size[-1]
    x = Operand(torch.from_numpy(random.integers(-128, 128, size).astype(np.int8)))
    weight = torch.from_numpy(random.integers(-127, 128, (c, c, 3, 3)).astype(np.int8))
    r = Operand(floats(1, size))
    e = Epilogue(
        activation="silu",
        bias=floats(2, (c,)),
        residual=r.values.permute(0, 3, 1, 2),
        out_dtype=torch.int8,
        output_scale=0.5,
    )
    fields, constants, scale = product(e, weight)
    expected = reference.conv2d(
        x.values.permute(0, 3, 1, 2), weight, scale, torch.tensor([0.03]), torch.tensor([3]), e, padding=(1, 1, 1, 1)
    )  # fmt: skip
    fields |= {"kh": 3, "kw": 3, "pad_top": 1, "pad_bottom": 1, "pad_left": 1, "pad_right": 1}
    OneStep("conv2d", fields, e, size, constants).check([x, r], expected.permute(0, 2, 3, 1), 2)


@pytest.mark.parametrize("fields", [{"activation": 20}, {"parameter": np.nan}])
def test_a_forged_activation_is_refused(fields: dict[str, Any]) -> None:
    e = Epilogue(bias=torch.zeros(4))
    _, constants, _ = product(e, torch.ones(4, 4, dtype=torch.int8))
    with pytest.raises(
        ValueError, match="its activation or that one's parameter is none that is known"
    ):
        one_step("linear", {"k": 4, **fields}, constants)
