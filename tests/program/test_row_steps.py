"""Softmax, normalizations, reductions and pools of any value as steps of a program, on every instruction set."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch.nn import functional as F
from value_steps import OneStep, floats, one_step, operands, outputs, quick

from qkernels import reference
from qkernels.reference import REDUCTIONS, Epilogue, Operand

WIDTHS = st.sampled_from([1, 2, 3, 5, 8, 15, 16, 17, 24, 31, 33, 48, 63, 64, 65, 80, 100, 384])
THREADS = st.integers(1, 3)
SEEDS = st.integers(0, 2**20)


@st.composite
def sizes(draw: Any, ranks: tuple[int, ...] = (2, 3, 4)) -> tuple[int, ...]:
    rank = draw(st.sampled_from(ranks))
    return (
        draw(st.integers(0, 3)),
        *(draw(st.integers(1, 6)) for _ in range(rank - 2)),
        draw(WIDTHS),
    )


def scaled(x: Operand) -> dict[str, Any]:
    return {"x_scale": x.scale, "x_zero": x.zero_point}


@given(data=st.data(), size=sizes(), log=st.booleans(), e=outputs(), threads=THREADS)
@quick(150)
def test_softmax_adds_in_the_order_of_the_reference(
    data: Any, size: tuple[int, ...], log: bool, e: Epilogue, threads: int
) -> None:
    x = data.draw(operands(size))
    expected = reference.softmax(x, e, logarithm=log)
    OneStep("softmax", {"log": log, **scaled(x)}, e, size).check([x], expected, threads)


@pytest.mark.parametrize("log", [False, True])
def test_softmax_is_close_to_torch_in_double(log: bool) -> None:
    x = floats(0, (4, 37, 197))
    got = OneStep("softmax", {"log": log}, Epilogue(), (4, 37, 197)).run([Operand(x)], "scalar", 1)
    exact = (F.log_softmax if log else F.softmax)(x.double(), -1)
    assert (got.double() - exact).abs().max() < 3e-6


def test_a_row_without_a_score_has_no_weights() -> None:
    x = torch.full((2, 5), -torch.inf)
    assert (OneStep("softmax", {}, Epilogue(), (2, 5)).run([Operand(x)], "scalar", 1) == 0).all()


@given(
    data=st.data(),
    size=sizes(),
    kind=st.sampled_from(["layer_norm", "rms_norm"]),
    e=outputs(),
    threads=THREADS,
)
@quick(200)
def test_rows_of_any_rank_and_type_are_normalized_in_the_order_of_the_reference(
    data: Any, size: tuple[int, ...], kind: str, e: Epilogue, threads: int
) -> None:
    x, seed = data.draw(operands(size)), data.draw(SEEDS)
    weight, bias = floats(seed, size[-1:]), floats(seed + 1, size[-1:])
    epsilon = data.draw(st.sampled_from([1e-5, 0.0, 0.1]))
    constants = {"weight": weight.numpy(), "bias": bias.numpy()}
    if kind == "rms_norm":
        del constants["bias"]
        expected = reference.rms_norm(x.floats(), weight, epsilon, e)
    else:
        expected = reference.layer_norm(x.floats(), weight, bias, epsilon, e)
    fields = {"epsilon": epsilon, **scaled(x)}
    OneStep(kind, fields, e, size, constants).check([x], expected, threads)


@given(data=st.data(), size=sizes((3, 4)), e=outputs(), threads=THREADS)
@quick(150)
def test_groups_are_normalized_in_the_order_of_the_reference(
    data: Any, size: tuple[int, ...], e: Epilogue, threads: int
) -> None:
    x, seed, c = data.draw(operands(size)), data.draw(SEEDS), size[-1]
    groups = data.draw(st.sampled_from([g for g in range(1, c + 1) if c % g == 0]))
    weight, bias = floats(seed, (c,)), floats(seed + 1, (c,))
    images = x.floats().reshape(*size[:2], size[2] if len(size) == 4 else 1, c)
    expected = reference.group_norm(images, groups, weight, bias, 1e-5, e).reshape(size)
    fields = {"groups": groups, "epsilon": 1e-5, **scaled(x)}
    constants = {"weight": weight.numpy(), "bias": bias.numpy()}
    OneStep("group_norm", fields, e, size, constants).check([x], expected, threads)


@given(data=st.data(), size=sizes(), e=outputs(), threads=THREADS)
@quick(150)
def test_a_factor_and_a_summand_a_channel_are_two_binary_steps(
    data: Any, size: tuple[int, ...], e: Epilogue, threads: int
) -> None:
    x, seed = data.draw(operands(size)), data.draw(SEEDS)
    weight, bias = floats(seed, size[-1:]), floats(seed + 1, size[-1:])
    expected = reference.affine(x.floats(), weight, bias, e)
    constants = {"weight": weight.numpy(), "bias": bias.numpy()}
    OneStep("affine", scaled(x), e, size, constants).check([x], expected, threads)


def test_rows_longer_than_the_products_kept_at_hand_have_a_factor_and_a_summand_too() -> None:
    x, weight, bias = floats(0, (3, 5000)), floats(1, (5000,)), floats(2, (5000,))
    constants = {"weight": weight.numpy(), "bias": bias.numpy()}
    expected = reference.affine(x, weight, bias, Epilogue())
    OneStep("affine", {}, Epilogue(), (3, 5000), constants).check([Operand(x)], expected, 2)


def test_a_group_norm_is_close_to_torch_in_double_and_the_same_on_three_threads() -> None:
    x, weight, bias = floats(0, (2, 28, 28, 96)) + 2, floats(1, (96,)), floats(2, (96,))
    exact = F.group_norm(x.permute(0, 3, 1, 2).double(), 32, weight.double(), bias.double(), 1e-5)
    constants = {"weight": weight.numpy(), "bias": bias.numpy()}
    step = OneStep(
        "group_norm", {"groups": 32, "epsilon": 1e-5}, Epilogue(), tuple(x.shape), constants
    )
    one, three = (step.run([Operand(x)], "scalar", threads) for threads in (1, 3))
    assert torch.equal(one, three)
    assert (one.double() - exact.permute(0, 2, 3, 1)).abs().max() < 5e-6 * exact.abs().max()


@given(
    data=st.data(), size=sizes(), op=st.sampled_from(list(REDUCTIONS)), over=st.tuples(*[st.booleans()] * 3),
    e=outputs(), threads=THREADS,
)  # fmt: skip
@quick(300)
def test_axes_are_reduced_in_the_order_of_the_reference(
    data: Any, size: tuple[int, ...], op: str, over: tuple[bool, ...], e: Epilogue, threads: int
) -> None:
    x = data.draw(operands(size))
    h, w, c = over[0] and len(size) > 2, over[1] and len(size) > 3, over[2]
    pixels = [axis for axis, flag in ((1, h), (2, w)) if flag]
    expected = reference.reduce(x, op, e, pixels=pixels, channels=c)
    fields = {"op": op, "over_h": h, "over_w": w, "over_c": c, **scaled(x)}
    OneStep("reduce", fields, e, tuple(expected.shape)).check([x], expected, threads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_a_mean_of_many_pixels_is_the_same_on_three_threads(dtype: torch.dtype) -> None:
    values = floats(0, (2, 56, 56, 72), spread=30.0).to(dtype)
    step = OneStep("reduce", {"over_h": 1, "over_w": 1, "x_scale": 0.1}, Epilogue(), (2, 1, 1, 72))
    x = Operand(values, 0.1)
    expected = reference.reduce(x, "mean", Epilogue(), pixels=(1, 2))
    step.check([x], expected, 3)
    assert (expected - x.floats().double().mean((1, 2), keepdim=True)).abs().max() < 1e-4


@given(
    data=st.data(), c=WIDTHS, kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)), stride=st.integers(1, 3),
    padded=st.booleans(), ceil_mode=st.booleans(), count_pad=st.booleans(), e=outputs(), threads=THREADS,
)  # fmt: skip
@quick(150)
def test_an_average_of_windows_adds_in_the_order_of_the_reference(
    data: Any, c: int, kernel: tuple[int, int], stride: int, padded: bool, ceil_mode: bool, count_pad: bool,
    e: Epilogue, threads: int,
) -> None:  # fmt: skip
    x = data.draw(operands((2, 7, 9, c)))
    pad = (kernel[0] // 2, kernel[1] // 2) if padded else (0, 0)
    size = F.avg_pool2d(torch.zeros(1, 1, 7, 9), kernel, stride, pad, ceil_mode, count_pad).shape[
        2:
    ]
    cut = [
        reference.windows(n, count, k, stride, p, count_pad=count_pad)
        for n, count, k, p in zip((7, 9), size, kernel, pad, strict=True)
    ]
    expected = reference.average_pool2d(x, e, *cut)
    fields = {
        "kh": kernel[0],
        "kw": kernel[1],
        "stride_h": stride,
        "stride_w": stride,
        "pad_h": pad[0],
        "pad_w": pad[1],
    }
    fields |= {"ceil_mode": ceil_mode, "count_include_pad": count_pad, "same_scale": 0, **scaled(x)}
    OneStep("avg_pool", fields, e, (2, *size, c)).check([x], expected, threads)


@given(
    data=st.data(),
    c=WIDTHS,
    out=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    e=outputs(),
    threads=THREADS,
)
@quick(100)
def test_an_adaptive_average_adds_in_the_order_of_the_reference(
    data: Any, c: int, out: tuple[int, int], e: Epilogue, threads: int
) -> None:
    x = data.draw(operands((2, 7, 5, c)))
    expected = reference.average_pool2d(
        x, e, reference.adaptive_windows(7, out[0]), reference.adaptive_windows(5, out[1])
    )
    fields = {"adaptive": 1, "out_h": out[0], "out_w": out[1], "same_scale": 0, **scaled(x)}
    OneStep("avg_pool", fields, e, (2, *out, c)).check([x], expected, threads)


def test_averages_are_torchs() -> None:
    x = floats(0, (2, 13, 11, 20))
    image = x.permute(0, 3, 1, 2).double()
    fields = {
        "kh": 3,
        "kw": 2,
        "stride_h": 2,
        "stride_w": 2,
        "pad_h": 1,
        "pad_w": 1,
        "same_scale": 0,
    }
    for count_pad in (0, 1):
        exact = F.avg_pool2d(image, (3, 2), 2, (1, 1), True, bool(count_pad)).permute(0, 2, 3, 1)
        given = {**fields, "ceil_mode": 1, "count_include_pad": count_pad}
        got = OneStep("avg_pool", given, Epilogue(), tuple(exact.shape)).run(
            [Operand(x)], "scalar", 1
        )
        assert (got - exact).abs().max() < 1e-5
    exact = F.adaptive_avg_pool2d(image, (4, 7)).permute(0, 2, 3, 1)
    fields = {"adaptive": 1, "out_h": 4, "out_w": 7, "same_scale": 0}
    got = OneStep("avg_pool", fields, Epilogue(), tuple(exact.shape)).run([Operand(x)], "scalar", 1)
    assert (got - exact).abs().max() < 1e-5


NORM = {"weight": np.ones(4, np.float32), "bias": np.ones(4, np.float32)}
RMS = {"weight": NORM["weight"]}


@pytest.mark.parametrize(
    ("kind", "fields", "constants", "sentence"),
    [
        ("softmax", {"log": 2}, {}, "its flag is neither 0 nor 1"),
        ("softmax", {"x_scale": -1.0}, {}, "a scale is not finite and above 0"),
        ("layer_norm", {"epsilon": -1.0}, NORM, "its epsilon is not finite and at least 0"),
        ("layer_norm", {}, RMS, "its bias lies outside"),
        ("rms_norm", {}, {}, "its weight lies outside"),
        ("rms_norm", {"epsilon": np.nan}, RMS, "its epsilon is not finite and at least 0"),
        ("group_norm", {"groups": 3}, NORM, "its groups do not divide its channels"),
        ("group_norm", {"groups": 0}, NORM, "its groups do not divide its channels"),
        ("group_norm", {}, RMS, "its bias lies outside"),
        ("affine", {}, RMS, "its bias lies outside"),
        ("affine", {}, {}, "its weight lies outside"),
        ("affine", {"lo": 2.0, "hi": 1.0}, NORM, "its clamp is empty"),
        ("reduce", {"op": 4}, {}, "its operation is none that is known"),
        ("reduce", {"over_w": 2}, {}, "a flag is neither 0 nor 1"),
        ("reduce", {"lo": 2.0, "hi": 1.0}, {}, "its clamp is empty"),
        ("avg_pool", {}, {}, "it keeps the scale of what is no int8, or of adaptive windows"),
        ("avg_pool", {"same_scale": 0, "adaptive": 1, "out_w": 0}, {}, "its window is empty"),
        ("avg_pool", {"same_scale": 0, "kh": 2**12, "kw": 2**12}, {}, "its window has too many values"),
    ],
)  # fmt: skip
def test_a_forged_payload_is_refused(kind: str, fields: Any, constants: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        one_step(kind, fields, constants, rank=4)
