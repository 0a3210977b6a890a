"""Steps that programs have as several simpler ones, or as one: addcmul, lerp, norms, products, attention spelt out.

For the fast form alone, since sums are rounded in other places.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from qkernels.graph import nodes
from qkernels.graph.attention import attention
from qkernels.graph.writer import Writer

aten = torch.ops.aten


def respell(graph: fx.GraphModule) -> None:
    """Put what programs have in the place of steps that mean the same."""
    for node in list(graph.graph.nodes):
        rule = _RULES.get(node.target) if node.op == "call_function" else None
        if rule is None or nodes.value(node) is None:
            continue
        with graph.graph.inserting_before(node):
            new = rule(Writer(node), nodes.arguments(node))
        if new is not None:
            node.replace_all_uses_with(new)
    graph.graph.eliminate_dead_code()


def _addcmul(write: Writer, given: dict[str, Any]) -> fx.Node:
    product = write(aten.mul.Tensor, given["tensor1"], given["tensor2"])
    if given["value"] != 1:
        product = write(aten.mul.Scalar, product, given["value"])
    return write(aten.add.Tensor, given["self"], product)


def _lerp(write: Writer, given: dict[str, Any]) -> fx.Node:
    way = write(aten.sub.Tensor, given["end"], given["self"])
    weight = given["weight"]
    part = aten.mul.Tensor if isinstance(weight, fx.Node) else aten.mul.Scalar
    return write(aten.add.Tensor, given["self"], write(part, way, weight))


def _vector_norm(write: Writer, given: dict[str, Any]) -> fx.Node | None:
    if given["ord"] != 2 or given["dtype"] is not None:
        return None
    squares = write(aten.pow.Tensor_Scalar, given["self"], 2)
    total = write(aten.sum.dim_IntList, squares, given["dim"], given["keepdim"])
    return write(aten.pow.Tensor_Scalar, total, 0.5)


def _einsum(write: Writer, given: dict[str, Any]) -> fx.Node | None:
    """A product of the last two axes, for each of the axes before."""
    operands, _, result = given["equation"].replace(" ", "").partition("->")
    a, _, b = operands.partition(",")
    batch, i, k, j = a[:-2], a[-2:-1], a[-1:], result[-1:]
    if "." in operands or len({*batch, i, j, k}) != len(batch) + 3 or result != batch + i + j:
        return None
    if b not in (batch + k + j, batch + j + k):
        return None
    x, y = given["tensors"]
    sizes = [nodes.value(n).shape[:-2] for n in (x, y)]  # type: ignore[union-attr]
    if not all(map(nodes.same_size, *sizes)):
        return None
    if b == batch + j + k:
        y = write(aten.transpose.int, y, -2, -1)
    product = {"self": x, "other": y}
    return attention(write, product) or write(aten.matmul.default, x, y)


_RULES: dict[Any, Callable[[Writer, dict[str, Any]], fx.Node | None]] = {
    aten.addcmul.default: _addcmul,
    aten.lerp.Tensor: _lerp,
    aten.lerp.Scalar: _lerp,
    aten.linalg_vector_norm.default: _vector_norm,
    aten.matmul.default: attention,
    aten.einsum.default: _einsum,
}
