"""Functions of one value and of two as steps of a program, on every instruction set."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor
from torch.nn import functional as F
from value_steps import NASTY, ZERO_POINTS, OneStep, box, floats, outputs

from qkernels import _core, reference
from qkernels.program.format import Step, Value, assemble
from qkernels.reference import FUNCTIONS, OPERATIONS, Epilogue, Operand

WIDTHS = [1, 2, 3, 7, 15, 16, 17, 24, 33, 64, 100, 513]


def quick(examples: int) -> settings:
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def operands(draw: Any, size: tuple[int, ...]) -> Operand:
    seed = draw(st.integers(0, 2**20))
    if draw(st.booleans()):
        values = np.random.default_rng(seed).integers(-128, 128, size).astype(np.int8)
        return Operand(
            torch.from_numpy(values),
            draw(st.sampled_from([0.03, 0.5])),
            draw(st.sampled_from(ZERO_POINTS)),
        )
    return Operand(floats(seed, size, nasty=draw(st.booleans())))


@st.composite
def clamped(draw: Any) -> Epilogue:
    e = draw(outputs())
    e.clamp_min, e.clamp_max = draw(
        st.sampled_from([(None, None), (0.0, None), (0.0, 6.0), (-1.5, 2.25)])
    )
    return e


@st.composite
def sizes(draw: Any) -> tuple[int, ...]:
    inner = draw(st.lists(st.integers(1, 5), min_size=0, max_size=2))
    return (draw(st.integers(0, 3)), *inner, draw(st.sampled_from(WIDTHS)))


@given(
    data=st.data(),
    size=sizes(),
    function=st.sampled_from(list(FUNCTIONS)),
    e=clamped(),
    threads=st.integers(1, 3),
)
@quick(250)
def test_a_function_gives_the_bits_of_the_reference(
    data: Any, size: tuple[int, ...], function: str, e: Epilogue, threads: int
) -> None:
    x = data.draw(operands(size))
    parameter = data.draw(st.sampled_from([1.0, 0.01, 1.702, -2.0]))
    fields = {
        "function": function,
        "parameter": parameter,
        "x_scale": x.scale,
        "x_zero": x.zero_point,
    }
    expected = reference.unary(x, function, np.float32(parameter).item(), e)
    OneStep("unary", fields, e, size).check([x], expected, threads)


@pytest.mark.parametrize("function", list(FUNCTIONS))
def test_a_table_of_all_bytes_gives_the_bits_of_the_function_itself(function: str) -> None:
    every = torch.arange(-128, 128).repeat(64).to(torch.int8).reshape(2, -1)
    x, e = (
        Operand(every, 0.05, 3),
        Epilogue(out_dtype=torch.int8, output_scale=0.03, output_zero_point=-5),
    )
    fields = {"function": function, "x_scale": 0.05, "x_zero": 3}
    OneStep("unary", fields, e, tuple(every.shape)).check(
        [x], reference.unary(x, function, 1.0, e), 2
    )


TORCHS = {
    "silu": F.silu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "elu": F.elu, "exp": torch.exp,
    "leaky_relu": lambda x: F.leaky_relu(x, 1.0), "sqrt": lambda x: torch.sqrt(x.abs()), "softplus": F.softplus,
    "mish": F.mish, "square": torch.square, "abs": torch.abs, "neg": torch.neg, "reciprocal": torch.reciprocal,
    "rsqrt": lambda x: torch.rsqrt(x.abs()), "log": lambda x: torch.log(x.abs()), "identity": lambda x: x,
}  # fmt: skip


@pytest.mark.parametrize("function", list(FUNCTIONS))
def test_a_function_is_close_to_torch_in_double(function: str) -> None:
    x = torch.cat(
        [
            torch.linspace(-30, 30, 20001),
            torch.logspace(-8, 1.4, 999),
            -torch.logspace(-8, 1.4, 1000),
        ]
    )[None]
    if function in ("sqrt", "rsqrt", "log"):
        x = x.abs() + 1e-9
    exact = TORCHS[function](x.double())
    got = OneStep("unary", {"function": function}, Epilogue(), tuple(x.shape)).run(
        [Operand(x)], "scalar", 1
    )
    assert ((got.double() - exact).abs() <= 5e-7 * exact.abs() + 1e-6).all()


@pytest.mark.parametrize("isa", [row["isa"] for row in _core.kernels() if row["available"]])
@pytest.mark.parametrize("function", list(FUNCTIONS))
def test_a_function_takes_every_extreme_number_in_every_lane(function: str, isa: str) -> None:
    extremes = torch.tensor([*NASTY, 1e-38, -1e-38, 127.5, -127.5, 3.9, 4.1], dtype=torch.float32)
    x = torch.stack([extremes.roll(i) for i in range(len(extremes))])
    step = OneStep("unary", {"function": function}, Epilogue(), tuple(x.shape))
    assert torch.equal(
        step.run([Operand(x)], isa, 1), reference.unary(Operand(x), function, 1.0, Epilogue())
    )


def repeated(draw: Any, size: tuple[int, ...]) -> tuple[int, ...]:
    """The sizes of an operand that broadcasts to ``size``."""
    return tuple(1 if n > 0 and draw(st.booleans()) else n for n in size)


@given(
    data=st.data(),
    size=sizes(),
    op=st.sampled_from(list(OPERATIONS)),
    e=clamped(),
    threads=st.integers(1, 3),
)
@quick(400)
def test_two_values_of_any_broadcast_give_the_bits_of_the_reference(
    data: Any, size: tuple[int, ...], op: str, e: Epilogue, threads: int
) -> None:
    size = (max(size[0], 1), *size[1:])
    a = data.draw(operands((size[0], *repeated(data.draw, size[1:]))))
    b = data.draw(operands((size[0], *repeated(data.draw, size[1:]))))
    reverse = data.draw(st.booleans())
    fields = {
        "op": op,
        "reverse": reverse,
        "a_scale": a.scale,
        "a_zero": a.zero_point,
        "b_scale": b.scale,
        "b_zero": b.zero_point,
    }
    expected = reference.binary(*((b, a) if reverse else (a, b)), op, e)
    OneStep("binary", fields, e, tuple(expected.shape)).check([a, b], expected, threads)


@given(
    data=st.data(),
    size=sizes(),
    op=st.sampled_from(list(OPERATIONS)),
    e=clamped(),
    reverse=st.booleans(),
)
@quick(200)
def test_a_value_and_a_constant_give_the_bits_of_the_reference(
    data: Any, size: tuple[int, ...], op: str, e: Epilogue, reverse: bool
) -> None:
    a = data.draw(operands(size))
    part = (1, *repeated(data.draw, size[1:]))
    b = Operand(floats(data.draw(st.integers(0, 99)), part, nasty=data.draw(st.booleans())))
    _, h, w, c = box(part)
    fields = {
        "op": op,
        "reverse": reverse,
        "a_scale": a.scale,
        "a_zero": a.zero_point,
        "data_h": h,
        "data_w": w,
        "data_c": c,
    }
    expected = reference.binary(*((b, a) if reverse else (a, b)), op, e)
    OneStep("binary", fields, e, size, {"data": b.values.numpy()}).check([a], expected, 1)


def test_a_large_value_is_shared_out_among_threads() -> None:
    for size, part in (
        ((2, 40, 40, 24), (2, 1, 1, 24)),
        ((1, 200, 768), (1, 1, 768)),
        ((3, 70000), (3, 1)),
    ):
        a, b = Operand(floats(0, size)), Operand(floats(1, part))
        for e in (Epilogue(), Epilogue(out_dtype=torch.int8, output_scale=0.05)):
            OneStep("binary", {"op": "mul"}, e, size).check(
                [a, b], reference.binary(a, b, "mul", e), 3
            )


def pair(a: tuple[int, ...], b: tuple[int, ...], y: tuple[int, ...]) -> Tensor:
    return OneStep("binary", {}, Epilogue(), y).run(
        [Operand(torch.ones(a)), Operand(torch.ones(b))], "scalar", 1
    )


@pytest.mark.parametrize(
    ("a", "b", "y", "sentence"),
    [
        ((2, 3, 4), (2, 5, 4), (2, 3, 4), "it joins 2x3x1x4 and 2x5x1x4"),
        ((2, 3, 4), (2, 3, 5), (2, 3, 4), "it joins 2x3x1x4 and 2x3x1x5"),
        ((2, 3, 4), (2, 3, 4), (2, 3, 6), "its output has 6 channels, but its input gives 4"),
        ((2, 3, 4), (2, 3, 4), (2, 4), "its output has rank 2, but its input gives 3x1x4"),
        ((2, 3, 5, 4), (2, 3, 5, 4), (2, 3, 4), "its output has rank 3, but its input gives 3x5x4"),
    ],
)
def test_values_that_do_not_meet_are_refused_at_the_call(
    a: Any, b: Any, y: Any, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        pair(a, b, y)


def test_a_value_of_another_rank_is_read_by_its_four_sizes() -> None:
    assert pair((2, 3, 1, 4), (2, 3, 4), (2, 3, 1, 4)).shape == (2, 3, 1, 4)
    assert pair((2, 3, 5, 4), (2, 4), (2, 3, 5, 4)).shape == (2, 3, 5, 4)


def one(kind: str, fields: dict[str, Any], constants: dict[str, np.ndarray] | None = None) -> Any:
    values = [Value(4, 2, "float32", callers=True), Value(4, 2, "float32", callers=True)]
    return _core.Program(
        assemble(
            values, [Step(kind, "it", 0, 1, fields=fields, constants=constants or {})], [0], [1]
        )
    )


DATA = {"data": np.ones(4, np.float32)}


@pytest.mark.parametrize(
    ("kind", "fields", "constants", "sentence"),
    [
        ("unary", {"function": 20}, {}, "its function is none that is known"),
        ("unary", {"parameter": np.inf}, {}, "its parameter is not finite"),
        ("unary", {"x_scale": 0.0}, {}, "a scale is not finite and above 0"),
        ("unary", {"lo": 1.0, "hi": 0.0}, {}, "its clamp is empty"),
        ("unary", {"lo": np.nan}, {}, "its clamp is empty"),
        ("unary", {"out_zero": 300}, {}, "its output has no scale or zero point"),
        ("binary", {"data_c": 4}, {}, "its constant lies outside"),
        ("binary", {"data_c": 3}, DATA, "its constant lies outside"),
        ("binary", {"data_c": 4, "data_h": -1}, DATA, "its constant has no sizes"),
        ("binary", {"data_c": 4, "op": 6}, DATA, "its operation is none that is known"),
        ("binary", {"data_c": 4, "reverse": 2}, DATA, "its operation is none that is known"),
        ("binary", {"data_c": 4, "b_zero": 128}, DATA, "a scale is not finite and above 0"),
    ],
)  # fmt: skip
def test_a_forged_payload_is_refused(kind: str, fields: Any, constants: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        one(kind, fields, constants)


def test_an_image_whose_pixels_may_lie_anywhere_is_refused_as_an_operand() -> None:
    values = [Value(4, 4, "float32", callers=True, nhwc_only=i == 0) for i in range(2)]
    y = Value(4, 4, "float32", callers=True, nhwc_only=True)
    with pytest.raises(ValueError, match="it reads an input whose pixels may lie anywhere"):
        _core.Program(assemble([*values, y], [Step("binary", "it", 0, 2, (1,))], [0, 1], [2]))
