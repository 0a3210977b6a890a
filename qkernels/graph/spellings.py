"""Steps that programs have as several simpler ones, or as one: addcmul, lerp, norms of vectors, attention spelt out.

For the fast form alone, since sums are rounded in other places.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from qkernels.graph import nodes

aten = torch.ops.aten


def respell(graph: fx.GraphModule) -> None:
    """Put what programs have in the place of steps that mean the same."""
    for node in list(graph.graph.nodes):
        rule = _RULES.get(node.target) if node.op == "call_function" else None
        if rule is None or nodes.value(node) is None:
            continue
        with graph.graph.inserting_before(node):
            new = rule(_Writer(node), nodes.arguments(node))
        if new is not None:
            node.replace_all_uses_with(new)
    graph.graph.eliminate_dead_code()


class _Writer:
    """Adds steps where ``node`` stands, with its place in the model."""

    def __init__(self, node: fx.Node) -> None:
        self.node = node

    def __call__(self, operator: Any, *args: Any, **kwargs: Any) -> fx.Node:
        new = self.node.graph.call_function(operator, args, kwargs)
        given, named = fx.map_arg((args, kwargs), lambda n: n.meta["val"])
        new.meta = dict(self.node.meta) | {"val": operator(*given, **named)}
        return new


def _addcmul(write: _Writer, given: dict[str, Any]) -> fx.Node:
    product = write(aten.mul.Tensor, given["tensor1"], given["tensor2"])
    if given["value"] != 1:
        product = write(aten.mul.Scalar, product, given["value"])
    return write(aten.add.Tensor, given["self"], product)


def _lerp(write: _Writer, given: dict[str, Any]) -> fx.Node:
    way = write(aten.sub.Tensor, given["end"], given["self"])
    weight = given["weight"]
    part = aten.mul.Tensor if isinstance(weight, fx.Node) else aten.mul.Scalar
    return write(aten.add.Tensor, given["self"], write(part, way, weight))


def _vector_norm(write: _Writer, given: dict[str, Any]) -> fx.Node | None:
    if given["ord"] != 2 or given["dtype"] is not None:
        return None
    squares = write(aten.pow.Tensor_Scalar, given["self"], 2)
    total = write(aten.sum.dim_IntList, squares, given["dim"], given["keepdim"])
    return write(aten.pow.Tensor_Scalar, total, 0.5)


# ---- softmax(q k^T * scale + mask) v


def _attention(write: _Writer, given: dict[str, Any]) -> fx.Node | None:
    weights, v = given["self"], given["other"]
    if not _is_only_read(weights) or weights.target not in _SOFTMAX:
        return None
    scores, dim, *_ = nodes.arguments(weights).values()
    rank = nodes.value(v).dim()  # type: ignore[union-attr]
    if rank != 4 or dim % rank != rank - 1:
        return None
    mask = None
    if _is_only_read(scores) and scores.target is aten.add.Tensor:
        mask, scores = _parted(scores)
    scale = 1.0
    while _is_only_read(scores) and (factor := _factor(scores)) is not None:
        scale, scores = scale * factor, scores.args[0]
    if not _is_only_read(scores) or scores.target is not aten.matmul.default:
        return None
    q, keys = scores.args
    if not all(nodes.value(x) is not None and nodes.value(x).dim() == 4 for x in (q, keys)):  # type: ignore[union-attr]
        return None
    k = write(aten.transpose.int, keys, 2, 3)
    return write(aten.scaled_dot_product_attention.default, q, k, v, mask, scale=scale)


_SOFTMAX = (aten.softmax.int, aten._softmax.default)


def _is_only_read(node: Any) -> bool:
    return isinstance(node, fx.Node) and len(node.users) == 1


def _parted(total: fx.Node) -> tuple[Any, Any]:
    """What is added to a product, and the product; a mask of truth values is never added."""
    a, b = total.args[:2]
    for mask, scores in ((a, b), (b, a)):
        if isinstance(mask, fx.Node) and _factored(scores).target is aten.matmul.default:
            return mask, scores
    return None, total


def _factored(node: Any) -> fx.Node:
    while isinstance(node, fx.Node) and _factor(node) is not None:
        node = node.args[0]
    assert isinstance(node, fx.Node)
    return node


def _factor(node: fx.Node) -> float | None:
    if node.target not in (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar):
        return None
    number = node.args[1]
    if not isinstance(number, int | float):
        return None
    return 1 / number if node.target in (aten.div.Tensor, aten.div.Scalar) else float(number)


_RULES: dict[Any, Callable[[_Writer, dict[str, Any]], fx.Node | None]] = {
    aten.addcmul.default: _addcmul,
    aten.lerp.Tensor: _lerp,
    aten.lerp.Scalar: _lerp,
    aten.linalg_vector_norm.default: _vector_norm,
    aten.matmul.default: _attention,
}
