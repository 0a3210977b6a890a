"""Integers that a program computes, as float32: counts along tokens, where the largest is, and the rows that they name.

The positions of RoBERTa are counts of the words that are no padding; the token that stands for a text is that of the
largest id, or the last one that is no padding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qkernels import _core
from qkernels.graph import nodes
from qkernels.graph.builder import Builder, LeftToTorch
from qkernels.graph.formats import Role, stored
from qkernels.graph.identities import axis_in_order
from qkernels.graph.places import Place
from qkernels.graph.steps.pointwise import join
from qkernels.graph.steps.table import INTEGERS, step
from qkernels.graph.words import LARGEST, numbers, table_of

aten = torch.ops.aten

CASTS = (
    aten.to.device, aten.to.dtype, aten.to.dtype_layout, aten.to.other, aten._to_copy.default, aten.type_as.default,
)  # fmt: skip
ARITHMETIC: dict[Any, str] = {
    aten.add.Tensor: "add", aten.sub.Tensor: "sub", aten.mul.Tensor: "mul", aten.add.Scalar: "add",
    aten.sub.Scalar: "sub", aten.mul.Scalar: "mul", aten.rsub.Scalar: "rsub",
}  # fmt: skip


def computed(b: Builder, node: fx.Node) -> None:
    """An integer that follows from more than one of the caller's."""
    given = nodes.arguments(node)
    if node.target in CASTS:
        x = node.args[0]
        if nodes.value(node).dtype == torch.bool:  # type: ignore[union-attr]
            raise LeftToTorch("it asks which of its integers are 0")
        _put(b, node, numbers(b, x), _largest(b, x))  # type: ignore[arg-type]
        return
    if node.target not in ARITHMETIC:
        raise LeftToTorch("it compares integers of several inputs")
    if given.get("alpha", 1) != 1:
        raise LeftToTorch("it scales what it adds")
    op, (left, right) = ARITHMETIC[node.target], list(given.values())[:2]
    sizes = _largest(b, left), _largest(b, right)
    largest = sizes[0] * sizes[1] if op == "mul" else sum(sizes)
    if largest > LARGEST:
        raise LeftToTorch("its integers may be larger than float32 tells apart")
    join(b, node, "sub", right, left) if op == "rsub" else join(b, node, op, left, right)
    b.largest[node] = largest


def _put(b: Builder, node: fx.Node, place: Place, largest: float) -> None:
    b.put(node, place)
    b.largest[node] = largest


def _largest(b: Builder, operand: Any) -> float:
    """The largest magnitude of an integer."""
    if isinstance(operand, int | float):
        return abs(operand)
    known = table_of(b, operand)
    tensor = b.constant(operand) if known is None else known
    if tensor is not None:
        return float(tensor.double().abs().max())
    b.place(operand)
    return b.largest.get(operand, 1.0)  # without an entry it is a truth value


@step(aten.cumsum.default, role=Role.COMPUTES, exact=True, table=INTEGERS)
def cumsum(b: Builder, node: fx.Node) -> None:
    given = nodes.arguments(node)
    largest = _largest(b, given["self"]) * _core.MAX_SCANNED
    if largest > LARGEST:
        raise LeftToTorch("its integers may be larger than float32 tells apart")
    x, axis = _along(b, given["self"], given["dim"])
    y = x
    if axis is not None:
        y = b.write_like(x, None)
        b.add("cumsum", "", b.read(x), y.value, axis=axis)
    _put(b, node, y, largest)


@step(aten.argmax.default, role=Role.COMPUTES, exact=True, table=INTEGERS)
def argmax(b: Builder, node: fx.Node) -> None:
    given = nodes.arguments(node)
    if given["dim"] is None:
        raise LeftToTorch("it looks for the largest of the whole batch")
    x, axis = _along(b, given["self"], given["dim"])
    if axis is None:
        raise LeftToTorch("it looks for the largest of one number")
    dim = given["dim"] % len(x.axes)
    (gone,) = x.axes[dim]
    atoms = tuple(a for i, a in enumerate(x.atoms) if i != gone)
    axes = [tuple(a - (a > gone) for a in own if a != gone) for own in x.axes]
    if not given["keepdim"]:
        del axes[dim]
    y = b.write(Place(-1, atoms, tuple(axes)), b.rank(x), None)
    b.add("argmax", "", b.read(x), y.value, axis=axis)
    _put(b, node, y, _core.MAX_SCANNED)


def _along(b: Builder, node: Any, dim: int) -> tuple[Place, int | None]:
    """A value as float32 in a box one of whose axes is that of the tensor, and which; None where its size is 1."""
    x = b.as_format(numbers(b, node), None)
    dim %= len(x.axes)
    x = b.split_at(x, dim)
    if not x.axes[dim]:
        return x, None
    axes = {x.atoms[a].axis for a in x.axes[dim]}
    if 0 in axes or len(x.axes[dim]) != 1:
        raise LeftToTorch("it goes along the batch, or along several axes")
    return x, axes.pop()


@step(aten.index.Tensor, role=Role.COMPUTES, exact=True)
def row_of_each(b: Builder, node: fx.Node) -> None:
    """x[0, 1, ..., index] of [N, T, C]: one row of each sequence."""
    source, indices = node.args[0], list(node.args[1])  # type: ignore[arg-type]
    x, result = nodes.value(source), nodes.value(node)
    assert x is not None and result is not None
    if x.dim() != 3 or len(indices) != 2 or result.dim() != 2:
        raise LeftToTorch("it is no row of each sequence")
    if axis_in_order(b.graph, indices[0], x.shape[0], 1) != 0 or not nodes.is_integer(indices[1]):
        raise LeftToTorch("its rows are not of one sequence after the other")
    rows = b.place(source)
    rows = b.arranged(rows, (rows.axes[0], rows.axes[1], (), rows.axes[2]), 3)
    index = b.as_format(numbers(b, indices[1]), None)
    index = b.arranged(index, (index.axes[0], (), (), ()), 2)
    kept = [a for axis in (0, 2) for a in rows.axes[axis]]
    new = {a: i for i, a in enumerate(kept)}
    axes = tuple(tuple(new[a] for a in rows.axes[axis]) for axis in (0, 2))
    y = b.write(Place(-1, tuple(rows.atoms[a] for a in kept), axes), 2, b.formats[rows.value])
    b.add("gather", "", b.read(rows), y.value, b.read(index))
    b.put(node, b.as_format(y, stored(node)))
