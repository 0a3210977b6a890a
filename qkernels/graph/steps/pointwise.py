"""Functions of one value, and two values joined number by number."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qkernels.graph import tables
from qkernels.graph import trace as nodes
from qkernels.graph.builder import Builder, LeftToTorch, output_fields
from qkernels.graph.formats import Role, stored
from qkernels.graph.fuse import clamp_of
from qkernels.graph.places import Place, divided, groups_by_axis
from qkernels.graph.steps.table import step

aten = torch.ops.aten


# ---- one value


@step(*tables.NAMES, aten.gelu.default, role=Role.TABLE)
def function(b: Builder, node: fx.Node) -> None:
    named = tables.name_of(node)
    if named is None:
        raise LeftToTorch("its parameters are none that a program knows")
    x, format = b.place(node.args[0]), stored(node)
    given = b.formats[x.value]
    table = tables.function_of(node)
    if table is not None and given and format:
        y = pointwise(b, node, x, "lookup")
        b.steps[-1].constants["table"] = b.array(tables.table_of(table, given, format))
    else:
        y = pointwise(
            b, node, x, "unary", function=named[0], parameter=named[1], **b.input_fields(x.value)
        )
    b.put(node, y)


def pointwise(b: Builder, node: fx.Node, x: Place, kind: str, **fields: Any) -> Place:
    """A step that does the same to every number of a box."""
    x = b.compact(x)
    y = b.write(node, x, b.values[x.value].rank, stored(node))
    output = {} if kind == "lookup" else output_fields(stored(node))
    b.add(kind, "", b.read(x), y.value, **fields, **output)
    return y


@step(
    aten.relu.default,
    aten.relu6.default,
    aten.hardtanh.default,
    aten.clamp.default,
    role=Role.COMPUTES,
    exact=True,
)
def clamp(b: Builder, node: fx.Node) -> None:
    bounds = clamp_of(node)
    if bounds is None:
        raise LeftToTorch("its bounds are tensors")
    x = b.place(node.args[0])
    low, high = bounds
    b.put(
        node,
        pointwise(
            b, node, x, "unary", function="identity", lo=low, hi=high, **b.input_fields(x.value)
        ),
    )


@step(aten.pow.Tensor_Scalar, role=Role.COMPUTES)
def power(b: Builder, node: fx.Node) -> None:
    known = {2: "square", 0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal", 1: "identity"}
    name = known.get(node.args[1])  # type: ignore[arg-type]
    if name is None:
        raise LeftToTorch(f"its exponent is {node.args[1]}")
    x = b.place(node.args[0])
    b.put(node, pointwise(b, node, x, "unary", function=name, **b.input_fields(x.value)))


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
    """``op`` of two operands, of which one may be a number or a tensor of the model, or repeat along axes."""
    if _of_model(b, left) is not None:
        _with_constant(b, node, op, right, _of_model(b, left), reverse=1)
        return
    if _of_model(b, right) is not None:
        _with_constant(b, node, op, left, _of_model(b, right), reverse=0)
        return
    x, y = b.place(left), b.place(right)
    reverse = _repeats(b, node, x) and not _repeats(b, node, y)
    whole, other = (y, x) if reverse else (x, y)
    if _repeats(b, node, whole):
        raise LeftToTorch("both its operands repeat")
    whole = b.compact(whole)
    parts, homes = b._parts(other, whole)
    whole = _by_runs(b, whole, [bool(parts.axes[homes[i]]) for i in range(len(whole.atoms))])
    other = b.like(other, whole)
    out = b.write(node, whole, b.values[whole.value].rank, stored(node))
    fields = b.input_fields(whole.value, "a") | b.input_fields(other.value, "b")
    b.add(
        "binary",
        "",
        b.read(whole),
        out.value,
        b.read(other),
        op=op,
        reverse=int(reverse),
        **fields,
        **output_fields(stored(node)),
    )
    b.put(node, out)


def _of_model(b: Builder, operand: Any) -> torch.Tensor | None:
    if isinstance(operand, int | float):
        return torch.tensor(float(operand))
    tensor = b.constant(operand)
    if tensor is not None and not tensor.is_floating_point():
        raise LeftToTorch(f"it reads {tensor.dtype}")
    return None if tensor is None else tensor.float()


def _repeats(b: Builder, node: fx.Node, x: Place) -> bool:
    shape = nodes.shape(node)
    assert shape is not None
    axes = [()] * (len(shape) - len(x.axes)) + list(x.axes)
    return any(not axis and size != 1 for axis, size in zip(axes, shape, strict=True))


def _by_runs(b: Builder, place: Place, present: list[bool]) -> Place:
    """A box along each of whose axes another operand is there as a whole or repeats."""
    if all(len({present[a] for a in group}) < 2 for group in groups_by_axis(place)):
        return place
    runs: list[list[int]] = [[0]]
    for a in range(1, len(place.atoms)):
        if present[a] == present[a - 1] and (a > 1 or place.atoms[a].axis == 0):
            runs[-1].append(a)
        else:
            runs.append([a])
    groups = divided(runs)
    return b.arranged(place, groups, 4 if groups[2] else 3 if groups[1] else 2)


def _with_constant(
    b: Builder, node: fx.Node, op: str, operand: Any, tensor: Any, reverse: int
) -> None:
    x = b.place(operand)
    if _repeats(b, node, x):
        raise LeftToTorch("it repeats what it joins with a constant")
    x = b.compact(x)
    x = _by_runs(b, x, _present(x, tensor))
    data = b.boxed(tensor, x)
    out = b.write(node, x, b.values[x.value].rank, stored(node))
    h, w, c = data.shape
    made = b.add(
        "binary", "", b.read(x), out.value, op=op, reverse=reverse, data_h=h, data_w=w, data_c=c,
        **b.input_fields(x.value, "a"), **output_fields(stored(node)),
    )  # fmt: skip
    made.constants["data"] = b.array(data)
    b.put(node, out)


def _present(x: Place, tensor: torch.Tensor) -> list[bool]:
    sizes = [1] * (len(x.axes) - tensor.dim()) + list(tensor.shape)
    return [sizes[x.axis_of(a)] != 1 for a in range(len(x.atoms))]
