"""Steps that programs have as several simpler ones, or as one: addcmul, lerp, norms of vectors, attention spelt out.

For the fast form alone, since sums are rounded in other places.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch._guards import detect_fake_mode

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

    def constant(self, tensor: torch.Tensor) -> fx.Node:
        """A node of that tensor."""
        new = nodes.constant(self.graph, f"constant_{self.node.name}", tensor)
        new.meta["val"] = detect_fake_mode(self.node.meta["val"]).from_tensor(tensor)
        return new

    def tensor(self, node: fx.Node) -> torch.Tensor | None:
        """The tensor of the model that a node is; None for any other."""
        return nodes.tensor_of(self.graph, node) if node.op == "get_attr" else None

    def size(self, wanted: int | torch.SymInt) -> Any:
        """That size, as one of an input where it is free; None where no input has it."""
        if nodes.is_fixed(wanted):
            return nodes.hint(wanted)
        inputs = [
            n for n in self.node.graph.find_nodes(op="placeholder") if nodes.value(n) is not None
        ]
        found = (
            (n, i)
            for n in inputs
            for i, size in enumerate(nodes.value(n).shape)
            if nodes.same_size(size, wanted)
        )  # type: ignore[union-attr]
        where = next(found, None)
        return None if where is None else self(aten.sym_size.int, *where)

    @property
    def graph(self) -> fx.GraphModule:
        module = self.node.graph.owning_module
        assert module is not None
        return module


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


# ---- softmax(q k^T * scale + masks) v


@dataclass
class _Scores:
    """What a softmax is taken of: a product of four dimensions, times numbers, plus masks.

    Attributes:
        product: of queries and transposed keys.
        scale: the product of the numbers.
        scales: tensors of the model with one number for every head, which the product is multiplied by.
        masks: what is added.
        windows: where a mask is one for every window, and images have several: the product as [images, windows, ...].
    """

    product: fx.Node
    scale: float = 1.0
    scales: list[fx.Node] = field(default_factory=list)
    masks: list[fx.Node] = field(default_factory=list)
    windows: fx.Node | None = None


def _attention(write: _Writer, given: dict[str, Any]) -> fx.Node | None:
    weights, v = given["self"], given["other"]
    if not _is_only_read(weights) or weights.target not in _SOFTMAX:
        return None
    scores, dim, *_ = nodes.arguments(weights).values()
    rank = nodes.value(v).dim()  # type: ignore[union-attr]
    found = _scores(scores)
    if rank != 4 or dim % rank != rank - 1 or found is None:
        return None
    mask = _mask(write, found)
    if mask is None and found.masks:
        return None
    q, keys = found.product.args
    for scale in found.scales:
        q = write(aten.mul.Tensor, q, scale)
    k = write(aten.transpose.int, keys, 2, 3)
    return write(aten.scaled_dot_product_attention.default, q, k, v, mask, scale=found.scale)


_SOFTMAX = (aten.softmax.int, aten._softmax.default)


def _is_only_read(node: Any) -> bool:
    return isinstance(node, fx.Node) and len(node.users) == 1


def _scores(node: Any) -> _Scores | None:
    """The scores that a node is, which nothing else reads; None where it is something else."""
    if not _is_only_read(node):
        return None
    if node.target is aten.matmul.default:
        four = all(nodes.value(x) is not None and nodes.value(x).dim() == 4 for x in node.args)  # type: ignore[union-attr]
        return _Scores(node) if four else None
    if node.target is aten.add.Tensor and nodes.arguments(node)["alpha"] == 1:
        return _added(*node.args[:2])
    if node.target is aten.reshape.default:
        return _added_to_windows(node)
    factor = _factor(node)
    inner = None if factor is None else _scores(node.args[0])
    if inner is None or inner.masks:
        return None
    if isinstance(factor, fx.Node):
        inner.scales.append(factor)
    else:
        inner.scale *= factor  # type: ignore[operator]
    return inner


def _added(a: Any, b: Any) -> _Scores | None:
    for mask, scores in ((a, b), (b, a)):
        found = _scores(scores) if isinstance(mask, fx.Node) else None
        if found is not None and found.windows is None:
            found.masks.append(mask)
            return found
    return None


def _added_to_windows(node: fx.Node) -> _Scores | None:
    """Scores [images * windows, heads, ...] to which, seen as [images, windows, heads, ...], a mask was added."""
    total = node.args[0]
    if not _is_only_read(total) or total.target is not aten.add.Tensor:  # type: ignore[union-attr]
        return None
    windows, mask = total.args[:2]  # type: ignore[union-attr]
    if not _is_only_read(windows) or windows.target is not aten.reshape.default:  # type: ignore[union-attr]
        return None
    found = _scores(windows.args[0])  # type: ignore[union-attr]
    x, split, y, added = map(nodes.value, (windows.args[0], windows, node, mask))  # type: ignore[union-attr]
    if found is None or found.windows is not None or x is None or split is None or y is None:
        return None
    if added is None or mask.op != "get_attr" or not nodes.alike(x, y) or split.dim() != 5:  # type: ignore[union-attr]
        return None
    same = all(map(nodes.same_size, x.shape[1:], split.shape[2:]))
    of_windows = added.dim() == 4 or (added.dim() == 5 and added.shape[0] == 1)
    if not same or not of_windows or not nodes.is_fixed(split.shape[1]):
        return None
    found.masks.append(mask)  # type: ignore[arg-type]
    found.windows = windows  # type: ignore[assignment]
    return found


def _mask(write: _Writer, scores: _Scores) -> fx.Node | None:
    """All masks as one that attention takes; None where there is none."""
    if scores.windows is None:
        return functools.reduce(functools.partial(write, aten.add.Tensor), scores.masks or [None])
    tensors = [write.tensor(mask) for mask in scores.masks]
    if any(t is None or (t.dim() == 4 and len(t) > 1) for t in tensors[:-1]):
        return None
    *others, last = tensors
    total = functools.reduce(torch.add, others, last.reshape(last.shape[-4:]))  # type: ignore[union-attr]
    total = total.expand(nodes.hint(nodes.value(scores.windows).shape[1]), *total.shape[1:])  # type: ignore[union-attr]
    images = write.size(nodes.value(scores.windows).shape[0])  # type: ignore[union-attr]
    if images is None:
        return None
    return write(aten.repeat.default, write.constant(total), [images, 1, 1, 1])


def _factor(node: fx.Node) -> Any:
    """What a node multiplies by: a number, or a tensor of the model with one for every head; None for other nodes."""
    if node.target not in (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar):
        return None
    factor = node.args[1]
    if isinstance(factor, int | float):
        divides = node.target in (aten.div.Tensor, aten.div.Scalar)
        return 1 / factor if divides else float(factor)
    x = nodes.value(factor)
    of_heads = x is not None and x.dim() in (3, 4) and x.shape[-2:] == (1, 1)
    return (
        factor if of_heads and node.target is aten.mul.Tensor and factor.op == "get_attr" else None
    )  # type: ignore[union-attr]


_RULES: dict[Any, Callable[[_Writer, dict[str, Any]], fx.Node | None]] = {
    aten.addcmul.default: _addcmul,
    aten.lerp.Tensor: _lerp,
    aten.lerp.Scalar: _lerp,
    aten.linalg_vector_norm.default: _vector_norm,
    aten.matmul.default: _attention,
}
