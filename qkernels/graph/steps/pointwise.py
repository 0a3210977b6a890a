"""Functions of one value, and two values joined number by number."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from qkernels.graph import nodes, tables
from qkernels.graph.builder import Builder, LeftToTorch, output_fields
from qkernels.graph.formats import Format, Role, stored
from qkernels.graph.fuse import clamp_of
from qkernels.graph.places import AXES, Atom, Place
from qkernels.graph.steps.table import step
from qkernels.graph.words import numbers

aten = torch.ops.aten


# ---- one value


@step(*tables.NAMES, aten.gelu.default, role=Role.TABLE)
def function(b: Builder, node: fx.Node) -> None:
    named = tables.name_of(node)
    if named is None:
        raise LeftToTorch("its parameters are none that a program knows")
    x, format, table = b.compact(b.place(node.args[0])), stored(node), tables.function_of(node)
    given, y = b.formats[x.value], b.write_like(x, format)
    if table is not None and given and format:
        made = b.add("lookup", "", b.read(x), y.value)
        made.constants["table"] = b.array(tables.table_of(table, given, format))
    else:
        b.compute("unary", x, y, function=named[0], parameter=named[1])
    b.put(node, y)


def unary(b: Builder, node: fx.Node, **fields: Any) -> None:
    """A function of every number of a value."""
    x = b.compact(b.place(node.args[0]))
    y = b.write_like(x, stored(node))
    b.compute("unary", x, y, **fields)
    b.put(node, y)


@step(
    aten.relu.default,
    aten.relu6.default,
    aten.hardtanh.default,
    aten.clamp.default,
    aten.clamp_min.default,
    aten.clamp_max.default,
    role=Role.COMPUTES,
    exact=True,
)
def clamp(b: Builder, node: fx.Node) -> None:
    bounds = clamp_of(node)
    if bounds is None:
        raise LeftToTorch("its bounds are tensors")
    if b.clamp_where_written(node, *bounds, stored(node)):
        return
    unary(b, node, function="identity", lo=bounds[0], hi=bounds[1])


@step(aten.pow.Tensor_Scalar, role=Role.COMPUTES)
def power(b: Builder, node: fx.Node) -> None:
    known = {2: "square", 0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal", 1: "identity"}
    if node.args[1] == 3:
        x = b.compact(b.place(node.args[0]))
        square = b.write_like(x, None)
        b.compute("unary", x, square, function="square")
        shape = nodes.sizes(nodes.value(node))  # type: ignore[arg-type]
        b.put(node, joined(b, "mul", square, x, shape, stored(node)))
        return
    name = known.get(node.args[1])  # type: ignore[arg-type]
    if name is None:
        raise LeftToTorch(f"its exponent is {node.args[1]}")
    unary(b, node, function=name)


# ---- two values

_BINARY: dict[Any, str] = {
    aten.add.Tensor: "add", aten.sub.Tensor: "sub", aten.mul.Tensor: "mul", aten.div.Tensor: "div",
    aten.maximum.default: "max", aten.minimum.default: "min", aten.add.Scalar: "add", aten.sub.Scalar: "sub",
    aten.mul.Scalar: "mul", aten.div.Scalar: "div",
}  # fmt: skip


@step(*_BINARY, role=Role.COMPUTES, exact=True)
def binary(b: Builder, node: fx.Node) -> None:
    given = list(nodes.arguments(node).values())
    if nodes.arguments(node).get("alpha", 1) != 1:
        raise LeftToTorch("it scales what it adds")
    join(b, node, _BINARY[node.target], given[0], given[1])


@step(aten.rsub.Scalar, aten.rsub.Tensor, role=Role.COMPUTES, exact=True)
def reversed_sub(b: Builder, node: fx.Node) -> None:
    given = list(nodes.arguments(node).values())
    if given[2] != 1:
        raise LeftToTorch("it scales what it subtracts")
    join(b, node, "sub", given[1], given[0])


def join(b: Builder, node: fx.Node, op: str, left: Any, right: Any) -> None:
    """``op`` of two operands, numbers, places or nodes, of which one may be of the model, or repeat along axes."""
    left, right = _operand(b, left), _operand(b, right)
    shape = nodes.sizes(nodes.value(node))  # type: ignore[arg-type]
    b.put(node, joined(b, op, left, right, shape, stored(node)))


def joined(
    b: Builder,
    op: str,
    left: Place | Tensor,
    right: Place | Tensor,
    shape: tuple[int, ...],
    format: Format,
) -> Place:
    """``op`` of two operands as a new value; a tensor is the model's, the same for each of the batch."""
    for tensor, operand, reverse in ((left, right, 1), (right, left, 0)):
        if isinstance(tensor, Tensor):
            if isinstance(operand, Tensor):
                raise LeftToTorch("it joins constants")
            if operand.repeats(shape):
                return _both_repeated(b, op, left, right, shape, format)
            x = b.compact(operand)
            sizes = [1] * (len(x.axes) - tensor.dim()) + list(tensor.shape)
            x = b.by_runs(x, [sizes[x.axis_of(a)] != 1 for a in range(len(x.atoms))])
            return with_constant(b, op, x, tensor, format, reverse)
    assert isinstance(left, Place) and isinstance(right, Place)
    reverse = int(left.repeats(shape) and not right.repeats(shape))
    whole, other = (right, left) if reverse else (left, right)
    if whole.repeats(shape):
        return _both_repeated(b, op, left, right, shape, format)
    whole = b.compact(whole)
    parts, homes = b.parts(other, whole)
    whole = b.by_runs(whole, [bool(parts.axes[homes[i]]) for i in range(len(whole.atoms))])
    other = b.like(other, whole)
    out = b.write_like(whole, format)
    fields = b.input_fields(whole.value, "a") | b.input_fields(other.value, "b")
    fields |= {"op": op, "reverse": reverse} | output_fields(format)
    b.add("binary", "", b.read(whole), out.value, b.read(other), **fields)
    return out


def _operand(b: Builder, operand: Any) -> Place | Tensor:
    if isinstance(operand, int | float):
        return torch.tensor(float(operand))
    tensor = b.constant(operand)
    if tensor is None:
        return numbers(b, operand)
    if not torch.equal(tensor.float().to(tensor.dtype), tensor):
        raise LeftToTorch(f"it reads {tensor.dtype} values that float32 does not have")
    return tensor.float()


def _both_repeated(
    b: Builder,
    op: str,
    left: Place | Tensor,
    right: Place | Tensor,
    shape: tuple[int, ...],
    format: Format,
) -> Place:
    """``op`` of two operands that repeat along axes of each other."""
    rank = len(shape)
    if rank not in AXES:
        raise LeftToTorch("both its operands repeat, in other than two to four dimensions")
    boxes = [_in_order(b, x, rank) for x in (left, right) if isinstance(x, Place)]
    atoms: list[Atom] = []
    axes: list[tuple[int, ...]] = []
    for i, (size, axis) in enumerate(zip(shape, AXES[rank], strict=True)):
        box = next((box for box in boxes if box.axes[i]), None)
        if box is not None:
            own = [box.atoms[a] for a in box.axes[i]]
        else:
            own = [Atom(axis, size, True)] if size > 1 else []
        axes.append(tuple(range(len(atoms), len(atoms) + len(own))))
        atoms += own
    y = b.write(Place(-1, tuple(atoms), tuple(axes)), rank, format)
    reverse = int(isinstance(left, Tensor))
    fields = {"op": op, "reverse": reverse} | output_fields(format)
    for name, box in zip("ab", boxes, strict=False):
        fields |= b.input_fields(box.value, name)
    made = b.add("binary", "", b.read(boxes[0]), y.value, *map(b.read, boxes[1:]), **fields)
    for tensor in (left, right):
        if isinstance(tensor, Tensor):
            sizes = [1] * (rank - tensor.dim()) + list(tensor.shape)
            h, w, c = ([1] * (4 - rank) + sizes[1:]) if rank != 3 else (sizes[1], 1, sizes[2])
            made.fields |= {"data_h": h, "data_w": w, "data_c": c}
            made.constants["data"] = b.array(tensor.reshape(h, w, c))
    return y


def _in_order(b: Builder, x: Place, rank: int) -> Place:
    """A box whose axes are those of a tensor of that many dimensions."""
    x = Place(x.value, x.atoms, (*[()] * (rank - len(x.axes)), *x.axes))
    groups: list[tuple[int, ...]] = [(), (), (), ()]
    for own, axis in zip(x.axes, AXES[rank], strict=True):
        groups[axis] = own
    return b.arranged(x, tuple(groups), rank)  # type: ignore[arg-type]


def with_constant(
    b: Builder, op: str, x: Place, tensor: Tensor, format: Format, reverse: int = 0
) -> Place:
    """``op`` of a value and a tensor of the model, which its box holds or repeats along whole axes."""
    out, data = b.write_like(x, format), b.boxed(tensor, x)
    h, w, c = data.shape
    fields = {"op": op, "reverse": reverse, "data_h": h, "data_w": w, "data_c": c}
    fields |= b.input_fields(x.value, "a") | output_fields(format)
    made = b.add("binary", "", b.read(x), out.value, **fields)
    made.constants["data"] = b.array(data)
    return out
