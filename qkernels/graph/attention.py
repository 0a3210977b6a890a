"""Attention spelt out, softmax(q k^T * scale + masks) v, as one step.

A mask may be one for every window of an image where windows are folded into the batch: it is repeated for every image,
and a program, which has it once, reads for image n that of n % windows.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from qkernels.graph import nodes
from qkernels.graph.writer import Writer

aten = torch.ops.aten
_SOFTMAX = (aten.softmax.int, aten._softmax.default)


@dataclass
class _Scores:
    """What a softmax is taken of: a product, times numbers, plus masks.

    Attributes:
        product: of queries and transposed keys, [images, heads, ...] or [images, windows, heads, ...].
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

    def has_heads_alone(self) -> bool:
        """Whether its masks are the same for all images and windows."""
        values = [x for mask in self.masks if (x := nodes.value(mask)) is not None]
        return self.windows is None and all(
            x.dim() < 4 or (len(x) == 1 and x.dim() == 4) for x in values
        )


def attention(write: Writer, given: dict[str, Any]) -> fx.Node | None:
    """Attention in the place of the product that ends it; None where it ends none."""
    weights, v = given["self"], given["other"]
    if not _is_only_read(weights) or weights.target not in _SOFTMAX:
        return None
    scores, dim, *_ = nodes.arguments(weights).values()
    found, values = _scores(scores), nodes.value(v)
    if found is None or values is None:
        return None
    q, keys = found.product.args
    rank = values.dim()
    if dim % rank != rank - 1 or any(nodes.value(x).dim() != rank for x in (q, keys)):  # type: ignore[union-attr]
        return None
    windows = list(values.shape[1:-3])  # of five dimensions the second is of windows
    if not all(map(nodes.is_fixed, windows)) or (windows and not found.has_heads_alone()):
        return None
    mask = _mask(write, found)
    if mask is None and found.masks:
        return None
    for scale in found.scales:
        q = write(aten.mul.Tensor, q, scale)
    k = write(aten.transpose.int, keys, -2, -1)
    if not windows:
        return write(aten.scaled_dot_product_attention.default, q, k, v, mask, scale=found.scale)
    folded = [write(aten.flatten.using_ints, x, 0, 1) for x in (q, k, v)]
    y = write(aten.scaled_dot_product_attention.default, *folded, mask, scale=found.scale)
    return write(aten.unflatten.int, y, 0, [-1, *map(nodes.hint, windows)])


def _is_only_read(node: Any) -> bool:
    return isinstance(node, fx.Node) and len(node.users) == 1


def _scores(node: Any) -> _Scores | None:
    """The scores that a node is, which nothing else reads; None where it is something else."""
    if not _is_only_read(node):
        return None
    if node.target is aten.matmul.default:
        values = [nodes.value(x) for x in node.args]
        return _Scores(node) if all(x is not None and x.dim() in (4, 5) for x in values) else None
    if node.target is aten.add.Tensor:
        return _added(node)
    if node.target is aten.reshape.default:
        return _added_to_windows(node)
    factor = _factor(node)
    inner = None if factor is None else _scores(node.args[0])
    if inner is None or inner.masks:
        return None
    if isinstance(factor, fx.Node):
        inner.scales.append(factor)
    else:
        inner.scale *= factor
    return inner


def _added(node: fx.Node) -> _Scores | None:
    a, b, alpha = nodes.arguments(node).values()
    for mask, scores in ((a, b), (b, a)):
        added, x, y = (nodes.value(n) for n in (mask, scores, node))
        if alpha != 1 or added is None or x is None or y is None:
            return None
        found = _scores(scores) if added.is_floating_point() and nodes.alike(x, y) else None
        if found is not None and found.windows is None:
            found.masks.append(mask)
            return found
    return None


def _added_to_windows(node: fx.Node) -> _Scores | None:
    """Scores [images * windows, heads, ...] to which, seen as [images, windows, heads, ...], a mask was added."""
    total = _read_only_by_one(node.args[0], aten.add.Tensor)
    if total is not None and nodes.arguments(total)["alpha"] != 1:
        return None
    windows = None if total is None else _read_only_by_one(total.args[0], aten.reshape.default)
    found = None if windows is None else _scores(windows.args[0])
    if total is None or windows is None or found is None or found.windows is not None:
        return None
    x, split, y = (nodes.value(n) for n in (windows.args[0], windows, node))
    mask = total.args[1]
    added = nodes.value(mask)
    if x is None or split is None or y is None or added is None or not added.is_floating_point():
        return None
    same = nodes.alike(x, y) and all(map(nodes.same_size, x.shape[1:], split.shape[2:]))
    of_windows = added.dim() == 4 or (added.dim() == 5 and added.shape[0] == 1)
    if (
        not same
        or x.dim() != 4
        or split.dim() != 5
        or not of_windows
        or not nodes.is_fixed(split.shape[1])
    ):
        return None
    found.masks.append(mask)  # type: ignore[arg-type]
    found.windows = windows
    return found


def _read_only_by_one(node: Any, operator: Any) -> fx.Node | None:
    return node if _is_only_read(node) and node.target is operator else None


def _mask(write: Writer, scores: _Scores) -> fx.Node | None:
    """All masks as one that attention takes; None where there is none, or none can be made."""
    if not scores.masks:
        return None
    if scores.windows is None:
        return functools.reduce(lambda a, b: write(aten.add.Tensor, a, b), scores.masks)
    split = nodes.value(scores.windows)
    assert split is not None
    *others, last = [write.tensor(mask) for mask in scores.masks]  # the last is that of the windows
    images = write.size(split.shape[0])
    if images is None or last is None:
        return None
    total = last.reshape(last.shape[-4:]).expand(nodes.hint(split.shape[1]), -1, -1, -1)
    for mask in others:
        if mask is None or (mask.dim() == 4 and len(mask) > 1):
            return None
        total = total + mask
    return write(aten.repeat.default, write.constant(total), [images, 1, 1, 1])


def _factor(node: fx.Node) -> Any:
    """What a node multiplies by: a number, or a tensor of the model with one for every head; None for other nodes."""
    if node.target not in (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar):
        return None
    factor = node.args[1]
    divides = node.target in (aten.div.Tensor, aten.div.Scalar)
    if isinstance(factor, int | float):
        return 1 / factor if divides else float(factor)
    x = nodes.value(factor)
    if divides or not isinstance(factor, fx.Node) or x is None or factor.op != "get_attr":
        return None
    return factor if x.dim() in (3, 4) and x.shape[-2:] == (1, 1) else None
