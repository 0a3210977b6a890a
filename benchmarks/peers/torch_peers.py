"""What torch itself offers: float layers, its quantized operators under two engines, and torch._int_mm."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .problem import INPUT_SCALE, OUTPUT_SCALE, Problem, Unsupported

Call = Callable[[], object]


def fp32(problem: Problem, threads: int) -> Call:
    if problem.scheme == "weight-only bf16":
        raise Unsupported("activations are bfloat16")
    layer, x = copy.deepcopy(problem.layer), problem.x
    if problem.is_conv:
        layer = layer.to(memory_format=torch.channels_last)
    return lambda: layer(x)


def bf16(problem: Problem, threads: int) -> Call:
    layer, x = copy.deepcopy(problem.layer).bfloat16(), problem.x.bfloat16()
    if problem.is_conv:
        layer = layer.to(memory_format=torch.channels_last)
    return lambda: layer(x)


def onednn(problem: Problem, threads: int) -> Call:
    return _with_engine("onednn", problem)


def fbgemm(problem: Problem, threads: int) -> Call:
    return _with_engine("fbgemm", problem)


def _with_engine(engine: str, problem: Problem) -> Call:
    """torch.ops.quantized, with a weight packed for one engine."""
    ops, scheme = torch.ops.quantized, problem.scheme
    if scheme.startswith("weight-only"):
        raise Unsupported("has no int8 weight-only operator")
    q, scale = problem.weight
    zero = torch.zeros(len(scale), dtype=torch.int64)
    weight = torch._make_per_channel_quantized_tensor(q, scale.double(), zero, 0)
    x = problem.x
    quint8 = torch.quantize_per_tensor(x, INPUT_SCALE, 128, torch.quint8)
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = engine
    try:
        if problem.is_conv:
            c = problem.conv
            pair = ([c.stride] * 2, [c.padding] * 2, [c.dilation] * 2)
            packed = ops.conv2d_prepack(weight, problem.layer.bias, *pair, c.groups)
            op: Any = ops.conv2d
        else:
            packed, op = ops.linear_prepack(weight, problem.layer.bias), ops.linear
    finally:
        torch.backends.quantized.engine = before
    if scheme == "int8":
        return lambda: op(quint8, packed, OUTPUT_SCALE, 128)
    if scheme == "dynamic":
        return lambda: ops.linear_dynamic(x, packed)

    def static() -> Tensor:
        quantized = torch.quantize_per_tensor(x, INPUT_SCALE, 128, torch.quint8)
        return op(quantized, packed, OUTPUT_SCALE, 128).dequantize()

    return static


def pointwise(problem: Problem, threads: int) -> Call:
    """torch.ops.onednn, the operators that Inductor's PT2E path calls: uint8 activations, plain tensors."""
    ops, scheme, bias = torch.ops.onednn, problem.scheme, problem.layer.bias
    if scheme not in ("int8", "static"):
        raise Unsupported("takes quantized activations only")
    weight, scale = problem.weight
    zeros = torch.zeros(len(scale), dtype=torch.int64)
    x = problem.x
    unsigned = ((x / INPUT_SCALE).round() + 128).clamp(0, 255).to(torch.uint8)
    out = (OUTPUT_SCALE, 128, torch.uint8) if scheme == "int8" else (1.0, 0, torch.float32)
    if problem.is_conv:
        c = problem.conv
        pair = ([c.stride] * 2, [c.padding] * 2, [c.dilation] * 2)
        packed = ops.qconv_prepack(weight, scale, INPUT_SCALE, 128, *pair, c.groups, list(x.shape))

        def run(u: Tensor) -> Tensor:
            return ops.qconv_pointwise(
                u,
                INPUT_SCALE,
                128,
                packed,
                scale,
                zeros,
                bias,
                *pair,
                c.groups,
                *out,
                "none",
                [],
                "",
            )
    else:
        packed = ops.qlinear_prepack(weight, list(x.shape))

        def run(u: Tensor) -> Tensor:
            return ops.qlinear_pointwise(
                u, INPUT_SCALE, 128, packed, scale, zeros, bias, *out, "none", [], ""
            )

    if scheme == "int8":
        return lambda: run(unsigned)
    from torch.ao.quantization.fx import _decomposed  # noqa: F401 (registers the next operator)

    quantize = torch.ops.quantized_decomposed.quantize_per_tensor
    return lambda: run(quantize(x, INPUT_SCALE, 128, 0, 255, torch.uint8))


def int_mm(problem: Problem, threads: int) -> Call:
    """torch._int_mm with the scaling written in eager torch, as users write it."""
    if problem.is_conv:
        raise Unsupported("is a matrix product")
    if problem.scheme != "dynamic":
        raise Unsupported("timed with dynamic scales only")
    weight, scale = problem.weight
    x, bias, columns = problem.x, problem.layer.bias, weight.t()

    def call() -> Tensor:
        row = x.abs().amax(1, keepdim=True) / 127
        q = (x / row).round().to(torch.int8)
        return torch._int_mm(q, columns) * (row * scale) + bias

    return call
