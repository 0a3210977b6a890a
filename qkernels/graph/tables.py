"""An activation function between two int8 layers, as a table of 256 values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from qkernels import reference
from qkernels.graph import nodes

QParams = tuple[float, int]  # scale and zero point of an int8 tensor

aten = torch.ops.aten
_REACH = 64.0  # beyond it these functions are straight
_STEPS = 1 << 17
NAMES: dict[Any, str] = {  # operator -> the function that a step of a program computes
    aten.silu.default: "silu", aten.hardswish.default: "hardswish", aten.hardsigmoid.default: "hardsigmoid",
    aten.sigmoid.default: "sigmoid", aten.tanh.default: "tanh", aten.leaky_relu.default: "leaky_relu",
    aten.elu.default: "elu", aten.mish.default: "mish", aten.softplus.default: "softplus", aten.exp.default: "exp",
    aten.log.default: "log", aten.sqrt.default: "sqrt", aten.rsqrt.default: "rsqrt", aten.abs.default: "abs",
    aten.neg.default: "neg", aten.square.default: "square", aten.reciprocal.default: "reciprocal",
}  # fmt: skip
_TABLES = (
    "silu",
    "hardswish",
    "hardsigmoid",
    "sigmoid",
    "tanh",
    "leaky_relu",
    "elu",
    "mish",
    "gelu",
    "gelu_tanh",
)


def name_of(node: fx.Node) -> tuple[str, float] | None:
    """The name of the function of one float that a node is, as programs know it, and its parameter."""
    if node.target is aten.gelu.default:
        return ("gelu" if nodes.arguments(node)["approximate"] == "none" else "gelu_tanh"), 1.0
    name = NAMES.get(node.target)
    if name is None:
        return None
    given = nodes.arguments(node)
    if name == "leaky_relu":
        return name, float(given["negative_slope"])
    if name == "elu":
        usual = given["scale"] == 1 and given["input_scale"] == 1
        return (name, float(given["alpha"])) if usual else None
    if name == "softplus" and (given["beta"], given["threshold"]) != (1, 20):
        return None
    return name, 1.0


def function_of(node: fx.Node) -> Callable[[Tensor], Tensor] | None:
    """The function of one float that the node is, if it is one of those that tables are made of."""
    known = name_of(node)
    if known is None or known[0] not in _TABLES:
        return None
    target: Callable[..., Tensor] = node.target  # type: ignore[assignment]
    return lambda x: target(x, *node.args[1:], **node.kwargs)


def input_format(function: Callable[[Tensor], Tensor], output: QParams) -> QParams:
    """Scale and zero point of int8 before the function, so that nothing is cut off that would show in ``output``.

    From the function alone, no data: the range outside of which its quantized value no longer changes (SiLU of -9 and
    of -10 are the same zero; what is above the largest output is saturated anyway).
    """
    x = torch.linspace(-_REACH, _REACH, _STEPS + 1)
    q = quantized(function(x), output)
    changes = (q[1:] != q[:-1]).nonzero().flatten()
    if len(changes) == 0:
        return 1.0, 0
    lo, hi = min(float(x[changes[0]]), 0.0), max(float(x[changes[-1] + 1]), 0.0)
    scale = max((hi - lo) / 255, 1e-12)
    return scale, max(-128, min(127, round(-128 - lo / scale)))


def table_of(function: Callable[[Tensor], Tensor], x: QParams, y: QParams) -> Tensor:
    """int8 [256]: the quantized function of every int8 value."""
    q = torch.arange(-128, 128)
    return quantized(function((q - x[1]).float() * x[0]), y)


def quantized(x: Tensor, format: QParams) -> Tensor:
    """Float values as int8 of that scale."""
    scale, zero = torch.tensor(format[0]), torch.tensor(format[1], dtype=torch.int32)
    return reference.quantize(x, scale, zero).view_as(x)
