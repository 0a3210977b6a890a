"""Functions of one value, and two values joined number by number."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qkernels.graph import tables
from qkernels.graph import trace as nodes
from qkernels.graph.builder import Builder, LeftToTorch, output_fields
from qkernels.graph.formats import Format, Role, stored
from qkernels.graph.fuse import clamp_of
from qkernels.graph.places import Place
from qkernels.graph.steps.table import step

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
    role=Role.COMPUTES,
    exact=True,
)
def clamp(b: Builder, node: fx.Node) -> None:
    bounds = clamp_of(node)
    if bounds is None:
        raise LeftToTorch("its bounds are tensors")
    unary(b, node, function="identity", lo=bounds[0], hi=bounds[1])


@step(aten.pow.Tensor_Scalar, role=Role.COMPUTES)
def power(b: Builder, node: fx.Node) -> None:
    known = {2: "square", 0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal", 1: "identity"}
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
    """``op`` of two operands, of which one may be a number or a tensor of the model, or repeat along axes."""
    for tensor, operand, reverse in (
        (_of_model(b, left), right, 1),
        (_of_model(b, right), left, 0),
    ):
        if tensor is not None:
            _with_constant(b, node, op, operand, tensor, reverse)
            return
    x, y, shape = b.place(left), b.place(right), nodes.shape(node)
    assert shape is not None
    reverse = int(x.repeats(shape) and not y.repeats(shape))
    whole, other = (y, x) if reverse else (x, y)
    if whole.repeats(shape):
        raise LeftToTorch("both its operands repeat")
    whole = b.compact(whole)
    parts, homes = b.parts(other, whole)
    whole = b.by_runs(whole, [bool(parts.axes[homes[i]]) for i in range(len(whole.atoms))])
    other = b.like(other, whole)
    out = b.write_like(whole, stored(node))
    fields = b.input_fields(whole.value, "a") | b.input_fields(other.value, "b")
    fields |= {"op": op, "reverse": reverse} | output_fields(stored(node))
    b.add("binary", "", b.read(whole), out.value, b.read(other), **fields)
    b.put(node, out)


def _of_model(b: Builder, operand: Any) -> torch.Tensor | None:
    if isinstance(operand, int | float):
        return torch.tensor(float(operand))
    tensor = b.constant(operand)
    if tensor is not None and not tensor.is_floating_point():
        raise LeftToTorch(f"it reads {tensor.dtype}")
    return None if tensor is None else tensor.float()


def _with_constant(
    b: Builder, node: fx.Node, op: str, operand: Any, tensor: torch.Tensor, reverse: int
) -> None:
    x, shape = b.place(operand), nodes.shape(node)
    assert shape is not None
    if x.repeats(shape):
        raise LeftToTorch("it repeats what it joins with a constant")
    x = b.compact(x)
    sizes = [1] * (len(x.axes) - tensor.dim()) + list(tensor.shape)
    x = b.by_runs(x, [sizes[x.axis_of(a)] != 1 for a in range(len(x.atoms))])
    b.put(node, with_constant(b, op, x, tensor, stored(node), reverse))


def with_constant(
    b: Builder, op: str, x: Place, tensor: torch.Tensor, format: Format, reverse: int = 0
) -> Place:
    """``op`` of a value and a tensor of the model, which its box holds or repeats along whole axes."""
    out, data = b.write_like(x, format), b.boxed(tensor, x)
    h, w, c = data.shape
    fields = {"op": op, "reverse": reverse, "data_h": h, "data_w": w, "data_c": c}
    fields |= b.input_fields(x.value, "a") | output_fields(format)
    made = b.add("binary", "", b.read(x), out.value, **fields)
    made.constants["data"] = b.array(data)
    return out
