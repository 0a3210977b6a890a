"""What the kernel tests share: strategies for problems, the oracle's answer and the kernels' answers to them.

Hypothesis draws shapes and options, a seed fills the arrays; so a failing example prints as one line.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor

from qkernels import _core, reference
from qkernels.reference import Epilogue

ISAS = [row["isa"] for row in _core.kernels() if row["available"]]
NAMES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16", torch.int8: "s8"}
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
DTYPES = list(NAMES)
ZERO_POINTS = [-128, -127, -1, 0, 3, 127]
PRIMES = [37, 53, 71, 97, 101, 151, 211]
SIZES = [
    *range(1, 18),
    *range(31, 34),
    *range(47, 50),
    *range(63, 66),
    *range(127, 130),
    *range(191, 194),
] + PRIMES

sizes = st.sampled_from(SIZES)
seeds = st.integers(0, 2**20)
RANGES = [
    "static",
    "per_row",
    "symmetric",
    "asymmetric",
]  # of float input; the first two of int8 input


def quick(examples: int) -> settings:
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))


# ---- arrays


def to_numpy(t: Tensor) -> np.ndarray:
    """The same memory; bfloat16 as its bits."""
    return (t.view(torch.uint16) if t.dtype == torch.bfloat16 else t).numpy()


def to_torch(a: np.ndarray) -> Tensor:
    t = torch.from_numpy(np.ascontiguousarray(a))
    return t.view(torch.bfloat16) if t.dtype == torch.uint16 else t


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def int8(g: torch.Generator, *shape: int, low: int = -128) -> Tensor:
    return torch.randint(low, 128, shape, generator=g, dtype=torch.int8)


def scales(g: torch.Generator, count: int, typical: float = 0.01) -> Tensor:
    return (torch.rand(count, generator=g) + 0.5) * typical


def zero_points(g: torch.Generator, count: int) -> Tensor:
    return torch.tensor(ZERO_POINTS)[torch.randint(len(ZERO_POINTS), (count,), generator=g)].int()


NASTY = torch.tensor(
    [torch.nan, torch.inf, -torch.inf, 1e-45, -1e-40, 1e-30, -0.0, 0.0, 3e38, -3e38, 6e-8, 65504]
)


def floats(
    g: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32, nasty: bool = False
) -> Tensor:
    """Normal values; `nasty`: whole rows of zeros, and NaN, infinities, denormals, -0 and huge values."""
    x = torch.randn(shape, generator=g)
    if nasty and x.numel():
        row_kind = torch.rand(shape[0], *[1] * (len(shape) - 1), generator=g)
        chosen = NASTY[torch.randint(len(NASTY), shape, generator=g)]
        x = torch.where((torch.rand(shape, generator=g) < 0.05) & (row_kind < 0.6), chosen, x)
        x = torch.where(row_kind > 0.9, 0.0, x)
    return x.to(dtype)


def assert_same_bits(got: Tensor, expected: Tensor, who: str) -> None:
    """Equal as bytes; the message names the first place that differs."""
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape), who
    size = expected.element_size()
    a, b = (
        t.contiguous().view({1: torch.int8, 2: torch.int16, 4: torch.int32}[size])
        for t in (got, expected)
    )
    if not torch.equal(a, b):
        at = tuple((a != b).nonzero()[0].tolist())
        wrong = int((a != b).sum())
        raise AssertionError(
            f"{who}: {wrong} of {a.numel()} differ; at {at} {got[at]} is not {expected[at]}"
        )


# ---- epilogue


def draw_epilogue(draw: Any, shape: tuple[int, ...], g: torch.Generator) -> Epilogue:
    """Any combination of steps for an output of this shape, whose axis 1 is channels."""
    out_dtype, residual_dtype = (
        draw(st.sampled_from(DTYPES)),
        draw(st.sampled_from([None, *DTYPES])),
    )
    low, high = draw(
        st.sampled_from([(None, None), (0.0, None), (0.0, 6.0), (-0.5, 0.5), (None, -0.0)])
    )
    e = Epilogue(clamp_min=low, clamp_max=high, out_dtype=out_dtype)
    if draw(st.booleans()):
        e.bias = torch.randn(shape[1], generator=g)
    if residual_dtype == torch.int8:
        e.residual, e.residual_scale = int8(g, *shape), draw(st.sampled_from([0.03, 0.5]))
        e.residual_zero_point = draw(st.sampled_from(ZERO_POINTS))
    elif residual_dtype:
        e.residual = floats(g, *shape, dtype=residual_dtype, nasty=draw(st.booleans()))
    if out_dtype == torch.int8:
        e.output_scale = draw(st.sampled_from([0.037, 0.0625, 1.0]))  # a power of two makes ties
        e.output_zero_point = draw(st.sampled_from(ZERO_POINTS))
    return e


def epilogue_arguments(e: Epilogue, residual: Tensor | None) -> dict[str, Any]:
    """Of `_core.linear` and `_core.conv2d`, but the bias."""
    return {
        "residual": None if residual is None else to_numpy(residual.contiguous()),
        "residual_scale": e.residual_scale,
        "residual_zero_point": e.residual_zero_point,
        "clamp_min": e.clamp_min,
        "clamp_max": e.clamp_max,
        "out_dtype": NAMES[e.out_dtype],
        "output_scale": e.output_scale,
        "output_zero_point": e.output_zero_point,
    }


# ---- linear and convolution


@dataclass
class Problem:
    """x and what it is multiplied by; `scale` None means dynamic."""

    x: Tensor
    weight: Tensor
    weight_scale: Tensor
    scale: Tensor | None
    zero_point: Tensor | None
    symmetric: bool
    epilogue: Epilogue

    def quantized(self) -> tuple[Tensor, Tensor, Tensor]:
        """x as int8 with its scale and zero point: one for all, or one along the first axis."""
        scale, zero = self.scale, self.zero_point
        rows = self.x.reshape(self.x.shape[0], -1)
        if scale is None or zero is None:
            scale, zero = reference.dynamic_scale(rows, symmetric=self.symmetric)
        if self.x.dtype == torch.int8:
            return self.x, scale, zero
        return reference.quantize(rows, scale, zero).view(self.x.shape), scale, zero

    def arguments(self, groups: int, residual: Tensor | None) -> dict[str, Any]:
        """What linear and conv2d of `_core` are handed besides x."""
        e = self.epilogue
        return {
            "weight": _core.pack_weight(to_numpy(self.weight), groups),
            "weight_scale": to_numpy(self.weight_scale),
            "bias": None if e.bias is None else to_numpy(e.bias),
            "input_scale": None if self.scale is None else to_numpy(self.scale),
            "input_zero_point": None if self.zero_point is None else to_numpy(self.zero_point),
            "symmetric": self.symmetric,
            **epilogue_arguments(e, residual),
        }


class Linear(Problem):
    def expected(self) -> Tensor:
        q, scale, zero = self.quantized()
        return reference.linear(q, self.weight, self.weight_scale, scale, zero, self.epilogue)

    def arrays(self) -> dict[str, Any]:
        return {"x": to_numpy(self.x), **self.arguments(1, self.epilogue.residual)}

    def run(self, isa: str, **options: Any) -> Tensor:
        return to_torch(_core.linear(**{**self.arrays(), "isa": isa, **options}))


@dataclass
class Conv2d(Problem):
    """x is [N, C, H, W]; the kernels are handed its NHWC view."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)  # left, right, top, bottom
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    padding_mode: str = "zeros"

    def geometry(self) -> dict[str, Any]:
        names = ("stride", "padding", "dilation", "groups", "padding_mode")
        return {name: getattr(self, name) for name in names}

    def expected(self) -> Tensor:
        q, scale, zero = self.quantized()
        return reference.conv2d(
            q, self.weight, self.weight_scale, scale, zero, self.epilogue, **self.geometry()
        )

    def arrays(self) -> dict[str, Any]:
        residual = self.epilogue.residual
        rows = None if residual is None else residual.permute(0, 2, 3, 1)
        return {
            "x": to_numpy(self.x.permute(0, 2, 3, 1)),
            "kernel_size": tuple(self.weight.shape[2:]),
            **self.geometry(),
            **self.arguments(self.groups, rows),
        }

    def run(self, isa: str, **options: Any) -> Tensor:
        y = _core.conv2d(**{**self.arrays(), "isa": isa, **options})
        return to_torch(y).permute(0, 3, 1, 2)


def assert_every_isa(problem: Linear | Conv2d, **options: Any) -> None:
    expected = problem.expected()
    for isa in ISAS:
        assert_same_bits(problem.run(isa, **options), expected, isa)


def draw_input(
    draw: Any, x_dtype: torch.dtype, shape: tuple[int, ...], g: torch.Generator
) -> dict[str, Any]:
    """x with its scale, zero point and symmetric."""
    if x_dtype == torch.int8:
        x, how = int8(g, *shape), draw(st.sampled_from(RANGES[:2]))
    else:
        x, how = (
            floats(g, *shape, dtype=x_dtype, nasty=draw(st.booleans())),
            draw(st.sampled_from(RANGES)),
        )
    count = {"static": 1, "per_row": shape[0]}.get(how)
    return {
        "x": x,
        "scale": count and scales(g, count, 0.02),
        "zero_point": count and zero_points(g, count),
        "symmetric": how != "asymmetric",
    }


@st.composite
def linears(draw: Any, x_dtypes: list[torch.dtype] = DTYPES) -> Linear:
    m, n, k = draw(sizes), draw(sizes), draw(sizes)
    g = rng(draw(seeds))
    return Linear(
        **draw_input(draw, draw(st.sampled_from(x_dtypes)), (m, k), g),
        weight=int8(g, n, k, low=-127),
        weight_scale=scales(g, n),
        epilogue=draw_epilogue(draw, (m, n), g),
    )


def channels(draw: Any, kind: str) -> tuple[int, int, int]:
    """Input channels, output channels and groups of a dense, grouped or depthwise convolution."""
    few = st.sampled_from([1, 2, 3, 4, 5, 15, 16, 17])
    if kind == "dense":
        many = st.sampled_from([1, 2, 3, 5, 8, 15, 16, 17, 31, 33, 48])
        return draw(many), draw(many), 1
    if kind == "grouped":
        groups = draw(st.sampled_from([2, 3, 4]))
        return groups * draw(st.sampled_from([2, 3, 5, 16, 17])), groups * draw(few), groups
    c = draw(st.sampled_from([2, 3, 15, 16, 17, 32, 35]))
    return c, c * draw(st.integers(1, 3)), c


def image_side(draw: Any, kernel: int, dilation: int, pads: tuple[int, int]) -> int:
    """A side that the kernel fits, and every padding mode too."""
    least = max(dilation * (kernel - 1) + 1 - sum(pads), max(pads) + 1, 1)
    return least + draw(st.integers(0, 5))


@st.composite
def convs(draw: Any, x_dtypes: list[torch.dtype] = DTYPES, square: bool = False) -> Conv2d:
    """`square`: 3x3 kernels of stride and dilation 1, not depthwise, which have a path of their own."""
    kinds = ["dense", "grouped"] if square else ["dense", "grouped", "depthwise"]
    c, oc, groups = channels(draw, draw(st.sampled_from(kinds)))
    side = (
        st.integers(1, 3) if draw(st.integers(0, 9)) else st.just(9)
    )  # 9 x 9: more taps than a kernel holds
    kernel, stride, dilation = (
        draw(st.tuples(s, s)) for s in (side, st.integers(1, 3), st.integers(1, 2))
    )
    if square:
        kernel, stride, dilation = (3, 3), (1, 1), (1, 1)
    padding = draw(st.sampled_from([(0, 0, 0, 0), (1, 1, 1, 1), (2, 0, 1, 3), (0, 3, 2, 0)]))
    h = image_side(draw, kernel[0], dilation[0], padding[2:])
    w = image_side(draw, kernel[1], dilation[1], padding[:2])
    batch, g = draw(st.integers(1, 3)), rng(draw(seeds))
    oh = (h + sum(padding[2:]) - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
    ow = (w + sum(padding[:2]) - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
    return Conv2d(
        **draw_input(draw, draw(st.sampled_from(x_dtypes)), (batch, c, h, w), g),
        weight=int8(g, oc, c // groups, *kernel, low=-127),
        weight_scale=scales(g, oc),
        epilogue=draw_epilogue(draw, (batch, oc, oh, ow), g),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        padding_mode=draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
    )


def variants(problem: Linear, **epilogue: Any) -> Linear:
    """The same problem with other epilogue options."""
    return replace(problem, epilogue=replace(problem.epilogue, **epilogue))


def some_conv(
    c: int, oc: int, groups: int, kernel: tuple[int, int], size: tuple[int, int], **geometry: object
) -> Conv2d:
    g = rng(c + oc)
    x, weight = int8(g, 2, c, *size), int8(g, oc, c // groups, *kernel, low=-127)
    bias = torch.randn(oc, generator=g)
    return Conv2d(
        x,
        weight,
        scales(g, oc),
        scales(g, 2),
        zero_points(g, 2),
        True,
        Epilogue(bias),
        groups=groups,
        **geometry,
    )
