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
        product: of queries and transposed keys, [images, heads, ...], of one head [images, ...], or
            [images, windows, heads, ...].
        scale: the product of the numbers.
        scales: tensors of the model with one number for every head, which the product is multiplied by.
        masks: what is added.
        windows: where masks are one for every window, and images have several: the product as [images, windows, ...].
        of_windows: the masks that are.
    """

    product: fx.Node
    scale: float = 1.0
    scales: list[fx.Node] = field(default_factory=list)
    masks: list[fx.Node] = field(default_factory=list)
    windows: fx.Node | None = None
    of_windows: list[fx.Node] = field(default_factory=list)

    def has_heads_alone(self) -> bool:
        """Whether its masks are the same for all images and windows."""
        values = [x for mask in self.masks if (x := nodes.value(mask)) is not None]
        product = nodes.value(self.product)
        own = (
            4 if product is None or product.dim() > 3 else 3
        )  # dimensions, with those of images or heads
        return self.windows is None and all(
            x.dim() < own or (len(x) == 1 and x.dim() == own) for x in values
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
    if not all(map(nodes.is_fixed, windows)) or (rank != 4 and not found.has_heads_alone()):
        return None
    mask = _mask(write, found)
    if mask is None and (found.masks or found.of_windows):
        return None
    for scale in found.scales:
        q = write(aten.mul.Tensor, q, scale)
    k = write(aten.transpose.int, keys, -2, -1)
    if rank == 3:
        q, k, v = (write(aten.unsqueeze.default, x, 1) for x in (q, k, v))
        y = write(aten.scaled_dot_product_attention.default, q, k, v, mask, scale=found.scale)
        return write(aten.squeeze.dim, y, 1)
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
        known = all(x is not None and x.dim() in (3, 4, 5) for x in values)
        return _Scores(node) if known else None
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
    """Scores [images * windows, heads, ...] to which, seen as [images, windows, heads, ...], masks were added."""
    masks, total = [], node.args[0]
    while (added := _read_only_by_one(total, aten.add.Tensor)) is not None:
        total, mask, alpha = nodes.arguments(added).values()
        if alpha != 1 or not _is_of_windows(nodes.value(mask)):
            return None
        masks.append(mask)
    windows = _read_only_by_one(total, aten.reshape.default)
    found = None if windows is None or not masks else _scores(windows.args[0])
    if windows is None or found is None or found.windows is not None:
        return None
    x, split, y = (nodes.value(n) for n in (windows.args[0], windows, node))
    if x is None or split is None or y is None or x.dim() != 4 or split.dim() != 5:
        return None
    same = nodes.alike(x, y) and all(map(nodes.same_size, x.shape[1:], split.shape[2:]))
    if not same or not nodes.is_fixed(split.shape[1]):
        return None
    found.windows, found.of_windows = windows, masks
    return found


def _is_of_windows(mask: torch.Tensor | None) -> bool:
    """Whether it is [windows, heads, ...], the same for every image."""
    if mask is None or not mask.is_floating_point():
        return False
    return mask.dim() == 4 or (mask.dim() == 5 and mask.shape[0] == 1)


def _read_only_by_one(node: Any, operator: Any) -> fx.Node | None:
    return node if _is_only_read(node) and node.target is operator else None


def _mask(write: Writer, scores: _Scores) -> fx.Node | None:
    """All masks as one that attention takes; None where there is none, or none can be made."""
    if scores.windows is None:
        if not scores.masks:
            return None
        return functools.reduce(lambda a, b: write(aten.add.Tensor, a, b), scores.masks)
    split = nodes.value(scores.windows)
    assert split is not None
    images = write.size(split.shape[0])
    masks, of_windows = _tensors(write, scores.masks), _tensors(write, scores.of_windows)
    if images is None or masks is None or of_windows is None:
        return None
    if any(m.dim() == 4 and len(m) > 1 for m in masks):
        return None
    first, *others = [m.reshape(m.shape[-4:]) for m in of_windows]
    total = first.expand(nodes.hint(split.shape[1]), -1, -1, -1)
    for mask in (*others, *masks):
        total = total + mask
    return write(aten.repeat.default, write.constant(total), [images, 1, 1, 1])


def _tensors(write: Writer, given: list[fx.Node]) -> list[torch.Tensor] | None:
    """The tensors of the model that nodes are; None where one is another."""
    found = [x for node in given if (x := write.tensor(node)) is not None]
    return found if len(found) == len(given) else None


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
