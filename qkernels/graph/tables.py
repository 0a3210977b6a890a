"""An activation function between two int8 layers, as a table of 256 values."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from qkernels import ops, reference
from qkernels.graph import trace as nodes
from qkernels.graph.layers import QParams

_MODULES = (
    nn.SiLU,
    nn.GELU,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Sigmoid,
    nn.Tanh,
    nn.ELU,
    nn.LeakyReLU,
)
_FUNCTIONS = (F.silu, F.gelu, F.hardswish, F.hardsigmoid, torch.sigmoid, torch.tanh)
_REACH = 64.0  # beyond it these functions are straight
_STEPS = 1 << 17


class Lookup(nn.Module):
    """int8 to int8 by a table [256]."""

    table: Tensor

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table)

    def forward(self, x: Tensor) -> Tensor:
        return ops.lookup(x, self.table)


def function_of(traced: fx.GraphModule, node: fx.Node) -> Callable[[Tensor], Tensor] | None:
    """The function of one float that the node is, if it is one of those that tables are made of; it writes to none."""
    module = nodes.module_of(traced, node)
    if isinstance(module, _MODULES):
        return lambda x: module(x.clone())  # which may be in place
    if node.op == "call_function" and node.target in _FUNCTIONS and len(node.args) == 1:
        target: Callable[[Tensor], Tensor] = node.target
        return lambda x: target(x.clone(), **node.kwargs)
    return None


def input_format(function: Callable[[Tensor], Tensor], output: QParams) -> QParams:
    """Scale and zero point of int8 before the function, so that nothing is cut off that would show in ``output``.

    From the function alone, no data: the range outside of which its quantized value no longer changes (SiLU of -9 and
    of -10 are the same zero; what is above the largest output is saturated anyway).
    """
    x = torch.linspace(-_REACH, _REACH, _STEPS + 1)
    q = _quantize(function(x), output)
    changes = (q[1:] != q[:-1]).nonzero().flatten()
    if len(changes) == 0:
        return 1.0, 0
    lo, hi = min(float(x[changes[0]]), 0.0), max(float(x[changes[-1] + 1]), 0.0)
    scale = max((hi - lo) / 255, 1e-12)
    return scale, max(-128, min(127, round(-128 - lo / scale)))


def table_of(function: Callable[[Tensor], Tensor], x: QParams, y: QParams) -> Tensor:
    """int8 [256]: the quantized function of every int8 value."""
    q = torch.arange(-128, 128)
    return _quantize(function((q - x[1]).float() * x[0]), y)


def _quantize(x: Tensor, format: QParams) -> Tensor:
    scale, zero = torch.tensor(format[0]), torch.tensor(format[1], dtype=torch.int32)
    return reference.quantize(x, scale, zero).view_as(x)
