"""Every sentence by which the front (csrc/front) refuses an argument, from torch and from NumPy."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qkernels import _core, ops
from qkernels.program.format import Step, Value, assemble

N, K = 21, 37
HUGE = 2**62
FRONT = Path(__file__).parents[1] / "csrc/front"
TORCH_TYPES = {"f32": torch.float32, "f64": torch.float64, "s8": torch.int8}
Call = Callable[[dict[str, Any]], Any]


def int8(*shape: int, low: int = -127) -> np.ndarray:
    return np.random.default_rng(0).integers(low, 128, shape, np.int8)


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.int32)


# ---- each operation from both fronts, with the same arguments: NumPy arrays, images as [N, C, H, W]


def tensors(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments as torch takes them."""
    new = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in given.items()}
    for name in ("out_dtype", "dtype"):
        if name in new:
            new[name] = TORCH_TYPES[new[name]]
    return new


def pixels(given: dict[str, Any]) -> dict[str, Any]:
    """Images as `_core` takes them, [N, H, W, C]."""
    images = [k for k in ("x", "residual") if getattr(given.get(k), "ndim", 0) == 4]
    return given | {name: given[name].transpose(0, 2, 3, 1) for name in images}


def both(kind: str) -> tuple[Call, Call]:
    """An operation on images that has one name and the same arguments in torch and in NumPy."""
    return (
        lambda given: getattr(ops, kind)(**tensors(given)),
        lambda given: getattr(_core, kind)(**pixels(given)),
    )


def numpy_quantize(given: dict[str, Any]) -> Any:
    return _core.quantize(**given)


def numpy_conv2d(given: dict[str, Any]) -> Any:
    return _core.conv2d(**pixels({"symmetric": True} | given))


PACKED = _core.pack_weight(int8(N, K))
SCALE, ZERO = np.float32([0.05]), np.int32([-7])
POOL: dict[str, Any] = {
    "x": int8(2, 5, 8, 9), "kernel_size": [3, 2], "stride": [2, 2], "padding": [1, 1],
}  # fmt: skip
LINEAR: dict[str, Any] = {
    "x": ones(4, K), "weight": PACKED, "weight_scale": ones(N), "bias": ones(N), "input_scale": SCALE,
    "input_zero_point": ZERO,
}  # fmt: skip
OPERATIONS: dict[str, tuple[dict[str, Any], Call, Call]] = {
    "linear": (LINEAR, lambda g: ops.linear(**tensors(g)), lambda g: _core.linear(**g)),
    "linear_weight_only": (
        {k: LINEAR[k] for k in ("x", "weight", "weight_scale", "bias")},
        lambda g: ops.linear_weight_only(**tensors(g)),
        lambda g: _core.linear_weight_only(**g),
    ),
    "conv2d": (
        {
            "x": ones(2, 4, 9, 8), "weight": _core.pack_weight(int8(8, 4, 3, 3)), "weight_scale": ones(8),
            "bias": None, "input_scale": None, "input_zero_point": None, "kernel_size": [3, 3], "stride": [1, 1],
            "padding": [1, 1, 1, 1], "dilation": [1, 1], "groups": 1, "padding_mode": "zeros",
        },
        lambda g: ops.conv2d(**tensors(g)),
        numpy_conv2d,
    ),
    "max_pool2d": (POOL | {"dilation": [1, 1]}, *both("max_pool2d")),
    "avg_pool2d": (POOL | {"zero_point": 3}, *both("avg_pool2d")),
    "mean_pool2d": ({"x": ones(2, 4, 3, 3)}, *both("mean_pool2d")),
    "lookup": (
        {"x": int8(3, 4), "table": int8(256)},
        lambda g: ops.lookup(**tensors(g)),
        lambda g: _core.lookup(**g),
    ),
    "quantize": (
        {"x": ones(3, 4), "scale": SCALE, "zero_point": ZERO},
        lambda g: ops.quantize(**tensors(g)),
        numpy_quantize,
    ),
    "dequantize": (
        {"q": int8(3, 4), "scale": SCALE, "zero_point": ZERO, "dtype": "f32"},
        lambda g: ops.dequantize(**tensors(g)),
        lambda g: _core.dequantize(**g),
    ),
    "pack_weight": (
        {"weight": int8(8, 4), "groups": 1},
        lambda g: ops.pack_weight(**tensors(g)),
        lambda g: _core.pack_weight(**g),
    ),
    "unpack_weight": (
        {"packed": PACKED, "size": [N, K], "groups": 1},
        lambda g: ops.unpack_weight(**tensors(g)),
        lambda g: _core.unpack_weight(**g),
    ),
}  # fmt: skip

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("linear", {"x": ones(4, K + 1)}, r"bytes, which are not a packed weight of N=21, K=38"),
    ("linear", {"x": np.ones((), np.float32)}, "x has no axis"),
    ("linear", {"x": np.ones((4, K))}, "x is float64; float32, float16, bfloat16 and int8"),
    ("linear", {"x": np.ones((4, K), np.int64)}, "x is int64"),
    ("linear", {"x": np.ones((4, K), np.uint8)}, "x is uint8"),
    ("linear", {"x": ones(2, 65536)}, "K=65536 is above the limit"),
    ("linear", {"x": ones(4, 0)}, "K and N are at least 1"),
    ("linear", {"x": int8(4, K), "input_scale": None, "input_zero_point": None}, "x is int8, so input_scale"),
    ("linear", {"input_scale": np.float32([np.nan])}, r"input_scale\[0\] is nan"),
    ("linear", {"input_scale": np.float32([np.inf])}, r"input_scale\[0\] is inf"),
    ("linear", {"input_scale": np.float32([0])}, r"input_scale\[0\] is 0"),
    ("linear", {"input_scale": np.float32([-1])}, r"input_scale\[0\] is -1"),
    ("linear", {"input_scale": np.float32([1e-45])}, r"input_scale\[0\] is 1.4013e-45; scales and their inverses"),
    ("linear", {"input_scale": ones(3)}, r"input_scale has 3 values; 1 or 4 \(one a row\)"),
    ("linear", {"input_scale": np.ones(1)}, "input_scale is float64; it must be float32"),
    ("linear", {"input_zero_point": np.int32([128])}, r"input_zero_point\[0\] is 128"),
    ("linear", {"input_zero_point": ones(1)}, "input_zero_point is float32; it must be int32"),
    ("linear", {"input_zero_point": zeros(4)}, "input_zero_point has 4 values; 1 are needed, as many as scales"),
    ("linear", {"input_scale": ones(4), "input_zero_point": zeros(8)[::2]}, "input_zero_point must be contiguous"),
    ("linear", {"input_zero_point": None}, "come together; only one was given"),
    ("linear", {"input_scale": None}, "come together; only one was given"),
    ("linear", {"weight_scale": np.full(N, np.inf, np.float32)}, r"weight_scale\[0\] is inf"),
    ("linear", {"weight_scale": np.full(N, 1e-45, np.float32)}, r"weight_scale\[0\] is 1.4013e-45"),
    ("linear", {"weight_scale": np.ones(N)}, "weight_scale is float64"),
    ("linear", {"weight_scale": ones(1, N)}, r"weight_scale is \[1, 21\]; it must be \[N\]"),
    ("linear", {"weight_scale": ones(2 * N)[::2]}, "weight_scale must be contiguous"),
    ("linear", {"weight": PACKED.astype(np.float32)}, "weight is float32; it must come from pack_weight"),
    ("linear", {"weight": np.zeros(2 * len(PACKED), np.int8)[::2]}, "pack_weight, which gives contiguous bytes"),
    ("linear", {"bias": ones(N + 1)}, r"bias is float32 \[22\]; it must be contiguous float32 \[21\]"),
    ("linear", {"bias": ones(N).astype(np.float16)}, "bias is float16"),
    ("linear", {"residual": ones(4, N + 1)}, r"residual is \[4, 22\], but the output is \[4, 21\]"),
    ("linear", {"residual": ones(N)}, r"residual is \[21\], but the output is"),
    ("linear", {"residual": np.ones((4, N))}, "residual is float64"),
    ("linear", {"residual_scale": 0.0}, "residual_scale is 0"),
    ("linear", {"residual_zero_point": -129}, "residual_zero_point is -129"),
    ("linear", {"clamp_min": 1.0, "clamp_max": 0.0}, "clamp_min=1 is above clamp_max=0"),
    ("linear", {"clamp_min": np.nan}, "clamp_min=nan is above"),
    ("linear", {"output_scale": 0.0}, "output_scale is 0"),
    ("linear", {"output_zero_point": 300}, "output_zero_point is 300"),
    ("linear_weight_only", {"x": int8(4, K)}, "x is int8; use linear"),
    ("linear_weight_only", {"clamp_min": 1.0, "clamp_max": 0.0}, "is above clamp_max"),
    ("conv2d", {"x": ones(4, 9, 8)}, r"x is \[4, 9, 8\]; it must have the four axes"),
    ("conv2d", {"x": ones(2, 5, 9, 8)}, "bytes, which are not a packed weight"),
    ("conv2d", {"x": ones(2, 4, 0, 8)}, "only the batch may be empty"),
    ("conv2d", {"x": ones(2, 4, 1, 1), "padding": [0] * 4}, "dilated 3x3, is larger than the padded input, 1x1"),
    ("conv2d", {"x": ones(1, 4096, 9, 9), "kernel_size": [5, 5]}, "K=C/groups.*102400 is above the limit"),
    ("conv2d", {"kernel_size": [2**31 - 1] * 2}, "is above the limit"),
    ("conv2d", {"groups": 3}, "groups=3 must divide"),
    ("conv2d", {"groups": 0}, "groups=0"),
    ("conv2d", {"padding": [1, 1]}, "padding holds 2 integers; 4 are needed"),
    ("conv2d", {"padding": [1, 1, -1, 1]}, "padding holds -1"),
    ("conv2d", {"padding": [HUGE] * 4}, "padding holds"),
    ("conv2d", {"padding": [2**30] * 4}, "is too large"),
    ("conv2d", {"dilation": [HUGE, 1]}, "dilation holds"),
    ("conv2d", {"stride": [0, 1]}, "stride holds 0"),
    ("conv2d", {"kernel_size": [3]}, "kernel_size holds 1 integers; 2 are needed"),
    ("conv2d", {"padding_mode": "mirror"}, "choose one of zeros, reflect, replicate, circular"),
    ("conv2d", {"padding": [8, 8, 9, 9], "padding_mode": "reflect"}, "8,8,9,9 does not fit an input of 9x8"),
    ("conv2d", {"residual": ones(2, 8, 9, 7)}, "but the output is"),
    ("conv2d", {"residual_scale": np.inf}, "residual_scale is inf"),
    ("conv2d", {"residual_zero_point": 128}, "residual_zero_point is 128"),
    ("conv2d", {"clamp_min": 6.0, "clamp_max": 0.0}, "clamp_min=6 is above clamp_max=0"),
    ("conv2d", {"input_scale": ones(3), "input_zero_point": zeros(3)}, r"1 or 2 \(one a image\)"),
    *(
        (kind, changes, sentence)
        for kind in ("max_pool2d", "avg_pool2d")
        for changes, sentence in (
            ({"x": ones(2, 5, 8, 9)}, "x is float32 .*; it must be int8"),
            ({"x": int8(5, 8, 9)}, r"x is \[5, 8, 9\]; it must have the four axes"),
            ({"x": int8(2, 5, 0, 9)}, "only the batch may be empty"),
            ({"padding": [2, 1]}, "padding 2,1 is more than half of the kernel 3,2"),
            ({"padding": [-1, 1]}, "padding holds -1"),
            ({"stride": [0, 1]}, "stride holds 0"),
            ({"kernel_size": [3, 2, 1]}, "kernel_size holds 3 integers"),
            ({"x": int8(2, 5, 1, 9), "padding": [0, 0]}, "the kernel is larger than the padded input, 1x9"),
        )
    ),
    ("max_pool2d", {"dilation": [1, HUGE]}, "dilation holds"),
    ("avg_pool2d", {"kernel_size": [2**13, 2**12], "x": int8(1, 1, 2**13, 1)}, "averages more than 16777216 values"),
    ("avg_pool2d", {"zero_point": 128}, "zero_point is 128"),
    ("mean_pool2d", {"x": int8(2, 4, 3, 3)}, "x is int8 .*; it must be float32"),
    ("mean_pool2d", {"x": ones(2, 4, 3)}, "it must have the four axes"),
    ("mean_pool2d", {"x": ones(2, 4, 0, 3)}, "only the batch may be empty"),
    ("lookup", {"x": ones(3, 4)}, "x is float32; it must be int8"),
    ("lookup", {"table": int8(255)}, r"table is int8 \[255\]; it must be contiguous int8 \[256\]"),
    ("lookup", {"table": ones(256)}, r"table is float32 \[256\]; it must be"),
    ("quantize", {"x": int8(2, 2)}, "x is int8 already"),
    ("quantize", {"x": np.ones((2, 2))}, "x is float64"),
    ("quantize", {"x": np.ones((), np.float32)}, "x has no axis"),
    ("quantize", {"scale": ones(2), "zero_point": zeros(2)}, "scale has 2 values; 1 or the number of rows, 3"),
    ("quantize", {"scale": np.float32([0])}, r"scale\[0\] is 0"),
    ("quantize", {"zero_point": np.int32([-129])}, r"zero_point\[0\] is -129"),
    ("dequantize", {"q": ones(3, 4)}, "q is float32; it must be int8"),
    ("dequantize", {"dtype": "s8"}, "dtype is int8; choose a float dtype"),
    ("dequantize", {"scale": ones(2), "zero_point": zeros(2)}, "scale has 2 values"),
    ("pack_weight", {"weight": np.full((4, 4), -128, np.int8)}, "weight holds -128"),
    ("pack_weight", {"weight": ones(4, 4)}, "weight is float32; it must be int8"),
    ("pack_weight", {"weight": int8(4, 4, 4)}, "weight has 3 axes"),
    ("pack_weight", {"weight": int8(4, 4), "groups": 3}, "groups=3 does not divide the 4 output channels"),
    ("pack_weight", {"weight": int8(0, 4)}, "weight is empty"),
    ("pack_weight", {"weight": int8(1, 65536)}, "K=65536 is above the limit"),
    ("unpack_weight", {"size": [N, K + 64]}, "bytes, which are not a packed weight"),
    ("unpack_weight", {"size": [N]}, "weight has 1 axes"),
    ("unpack_weight", {"size": [-1, -K]}, "weight is empty"),
    ("unpack_weight", {"size": [2**46, K]}, "a weight of 70368744177664 output channels is too large"),
]  # fmt: skip


def message(call: Call, given: dict[str, Any], expected: tuple[type[Exception], ...]) -> str:
    with pytest.raises(expected) as caught:
        call(given)
    text = str(caught.value)
    assert "\n" not in text, "an error is one sentence"
    return text


def from_torch(case: int) -> str:
    name, changes, _ = REFUSED[case]
    arguments, call, _ = OPERATIONS[name]
    text = message(call, arguments | changes, (RuntimeError,))
    assert text.startswith(f"qkernels.{name}: ")
    return text


def from_numpy(case: int) -> str:
    name, changes, _ = REFUSED[case]
    arguments, _, call = OPERATIONS[name]
    return message(call, arguments | changes, (ValueError, TypeError))


@pytest.mark.parametrize("name", OPERATIONS)
def test_unchanged_arguments_give_the_same_values_in_both_fronts(name: str) -> None:
    arguments, torch_call, numpy_call = OPERATIONS[name]
    ours, theirs = torch_call(arguments).numpy(), numpy_call(arguments)
    theirs = theirs[0] if isinstance(theirs, tuple) else theirs  # with the scale that was given
    # Channels of images come first in torch and last in NumPy.
    assert np.array_equal(np.sort(ours, None), np.sort(theirs, None))


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_torch_and_numpy_refuse_an_argument_with_one_sentence(case: int) -> None:
    name, _, sentence = REFUSED[case]
    said = from_torch(case).removeprefix(f"qkernels.{name}: ")
    assert re.search(sentence, said), said
    assert from_numpy(case) == said


def test_a_wrong_dtype_is_a_type_error_in_numpy() -> None:
    with pytest.raises(TypeError, match="weight_scale is float64"):
        _core.linear(**LINEAR | {"weight_scale": np.ones(N)})


# ---- programs


def small_program() -> np.ndarray:
    values = [Value(3, 2, "float32", callers=True), Value(2, 2, "float32", callers=True)]
    constants = {"weight": _core.pack_weight(int8(2, 3)), "w_scale": ones(2)}
    return assemble(
        values, [Step("linear", "l", 0, 1, fields={"k": 3}, constants=constants)], [0], [1]
    )


def run_in_torch(data: np.ndarray, *inputs: np.ndarray) -> Any:
    arena = torch.zeros(1 << 14, dtype=torch.uint8)
    given = [torch.from_numpy(x) for x in inputs]
    return torch.ops.qkernels.run_program(torch.from_numpy(data), arena, given, None)


def run_in_numpy(data: np.ndarray, *inputs: np.ndarray) -> Any:
    return _core.Program(data).run(list(inputs))


def misaligned(data: np.ndarray) -> np.ndarray:
    memory = np.zeros(data.nbytes + 8, np.uint8)
    memory[1 : 1 + data.nbytes] = data
    return memory[1 : 1 + data.nbytes]


PROGRAM_REFUSALS: list[tuple[Callable[[np.ndarray], tuple[Any, ...]], str]] = [
    (lambda data: (np.repeat(data, 2)[::2], ones(1, 3)), "program must be contiguous bytes"),
    (lambda data: (misaligned(data), ones(1, 3)), "not aligned to 64"),
    (lambda data: (data[:-8], ones(1, 3)), "program is none that may run: .*cut off"),
    (lambda data: (data,), "0 inputs were given; the program takes 1"),
    (lambda data: (data, np.ones((1, 3))), "input 0 has dtype float64; float32 is needed"),
    (lambda data: (data, ones(3)), "input 0 has 1 axes"),
    (lambda data: (data, ones(1, 4)), r"input 0 is \[1, 4\]; \[N, 3\] is needed"),
]


@pytest.mark.parametrize("case", range(len(PROGRAM_REFUSALS)))
def test_torch_and_numpy_refuse_a_program_or_its_input_with_one_sentence(case: int) -> None:
    change, sentence = PROGRAM_REFUSALS[case]
    given = change(small_program())
    said = message(lambda _: run_in_torch(*given), {}, (RuntimeError,))
    assert re.search(sentence, said), said
    other = message(lambda _: run_in_numpy(*given), {}, (ValueError, TypeError))
    assert said == f"qkernels.run_program: {other}"


# ---- none is left out

# What needs a second device, or what both front ends prevent by copying before they ask.
UNREACHABLE = {", but x is on ", "; programs run on the CPU", "weight must be contiguous"}
TOKENS = {
    "layer_norm_problem",
    "attention_problem",
    "output_only",
}  # only NumPy has these operators


def sentences() -> list[str]:
    """The longest literal of every refusal in the sources, but those of tokens."""
    found = []
    for path in sorted(FRONT.glob("*.*")):
        for function in re.split(r"\n(?=\S)", path.read_text()):
            if any(f" {name}(" in function.split("\n")[0] for name in TOKENS):
                continue
            for statement in re.findall(
                r"\b(?:check|check_type|refuse(?:<\w+>)?)\((.*?)\);", function, re.S
            ):
                if literals := re.findall(r'"((?:[^"\\]|\\.)*)"', statement):
                    found.append(max(literals, key=len))
    return found


def test_no_refusal_of_the_front_is_untested() -> None:
    said = [from_numpy(case) for case in range(len(REFUSED))]
    for change, _ in PROGRAM_REFUSALS:
        given = change(small_program())
        said.append(message(lambda _, g=given: run_in_numpy(*g), {}, (ValueError, TypeError)))  # type: ignore[misc]
    missing = {s for s in sentences() if not any(s in text for text in said)}
    assert len(sentences()) > 40
    assert missing == UNREACHABLE


def test_an_output_of_another_dtype_than_kernels_write_is_refused() -> None:
    x = torch.from_numpy(ones(4, K))
    arguments = tensors({k: v for k, v in LINEAR.items() if k != "x"})
    with pytest.raises(RuntimeError, match="out_dtype is float64"):
        ops.linear(x, **arguments, out_dtype=torch.float64)
    with pytest.raises(TypeError, match="dtype 'f64' is unknown"):
        _core.linear(**LINEAR, out_dtype="f64")


def test_what_a_front_copies_gives_the_same_bits() -> None:
    wide = np.random.default_rng(1).standard_normal((8, 2 * K)).astype(np.float32)
    residual = np.random.default_rng(2).standard_normal((2 * N, 4)).astype(np.float32)
    plain = LINEAR | {
        "x": np.ascontiguousarray(wide[::2, ::2]),
        "residual": np.ascontiguousarray(residual.T[:, ::2]),
    }
    given = LINEAR | {"x": wide[::2, ::2], "residual": residual.T[:, ::2]}
    expected = _core.linear(**plain)
    assert np.array_equal(_core.linear(**given), expected)
    y: Tensor = ops.linear(**tensors(given))
    assert np.array_equal(y.numpy(), expected)
