"""Integers, truth values, and what they choose: masks of attention that follow from what the caller gives."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from qkernels.graph import nodes
from qkernels.graph.builder import Builder, LeftToTorch
from qkernels.graph.formats import Role, stored
from qkernels.graph.places import Place
from qkernels.graph.steps import moves
from qkernels.graph.steps.counting import ARITHMETIC, CASTS, computed
from qkernels.graph.steps.pointwise import join, joined
from qkernels.graph.steps.table import INTEGERS, TABLE, Lowering, Row, step
from qkernels.graph.words import looked_up, numbers, table_of

aten = torch.ops.aten


# ---- views of integers


def _moved(view: Lowering) -> Lowering:
    def lower(b: Builder, node: fx.Node) -> None:
        view(b, node)
        table = table_of(b, node.args[0])  # type: ignore[arg-type]
        if table is not None:
            b.tables[node] = table

    return lower


for _operator in moves.VIEWS:
    INTEGERS[_operator] = Row(Role.MOVES, True, _moved(TABLE[_operator].lower))


# ---- functions of integers

_COMPARED = tuple(
    getattr(getattr(aten, name), kind)
    for name in ("eq", "ne", "lt", "le", "gt", "ge")
    for kind in ("Scalar", "Tensor")
)
_NOT = (aten.logical_not.default, aten.bitwise_not.default)
_JOINED: dict[Any, str] = {  # truth values, which are 1 and 0
    aten.__and__.Tensor: "min", aten.bitwise_and.Tensor: "min", aten.logical_and.default: "min",
    aten.__or__.Tensor: "max", aten.bitwise_or.Tensor: "max", aten.logical_or.default: "max",
}  # fmt: skip


@step(
    *CASTS, *_COMPARED, *_NOT, *_JOINED, *ARITHMETIC, role=Role.COMPUTES, exact=True, table=INTEGERS
)
def function_of_words(b: Builder, node: fx.Node) -> None:
    found = _table(b, node)
    if found is not None:
        place, b.tables[node] = found
        b.put(node, place)
    elif any(nodes.value(x).dtype != torch.bool for x in (node, *node.all_input_nodes)):  # type: ignore[union-attr]
        computed(b, node)
    elif node.target in _JOINED:
        join(b, node, _JOINED[node.target], node.args[0], node.args[1])
    elif node.target in _NOT:
        join(b, node, "sub", 1.0, node.args[0])
    else:
        raise LeftToTorch("it compares truth values")


def _table(b: Builder, node: fx.Node) -> tuple[Place, Tensor] | None:
    """The place of the words of a function of one word, and its values; None where it is of several."""
    known: dict[fx.Node, Tensor] = {}
    places = []
    for x in node.all_input_nodes:
        table, tensor = table_of(b, x), b.constant(x)
        if table is not None:
            known[x] = table
            places.append(b.place(x))
        elif tensor is not None and tensor.numel() == 1:
            known[x] = tensor.reshape(())
        else:
            return None
    if not places or any(place != places[0] for place in places):
        return None
    args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
    result: Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
    return places[0], result


@step(*CASTS, role=Role.COMPUTES, exact=True)
def as_numbers(b: Builder, node: fx.Node) -> None:
    x = node.args[0]
    given = nodes.value(x)
    if given is None or given.is_floating_point():
        raise LeftToTorch("it reads a dtype that no program has")
    assert isinstance(x, fx.Node)
    table = table_of(b, x)
    b.put(node, numbers(b, x) if table is None else looked_up(b, x, table, stored(node)))


# ---- choices


@step(
    aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar, role=Role.COMPUTES, exact=True
)  # fmt: skip
def where(b: Builder, node: fx.Node) -> None:
    given = nodes.arguments(node)
    _choose(b, node, given["condition"], given["self"], given["other"])


@step(aten.masked_fill.Scalar, aten.masked_fill.Tensor, role=Role.COMPUTES, exact=True)
def masked_fill(b: Builder, node: fx.Node) -> None:
    given = nodes.arguments(node)
    _choose(b, node, given["mask"], given["value"], given["self"])


def _choose(b: Builder, node: fx.Node, condition: Any, first: Any, second: Any) -> None:
    """The first where the condition holds, else the second, of which one at least is a number."""
    a, c = _number(b, first), _number(b, second)
    table = table_of(b, condition)
    if table is not None and a is not None and c is not None:
        b.put(node, looked_up(b, condition, torch.where(table, a, c), stored(node)))
        return
    if a is None and c is None:
        raise LeftToTorch("it chooses between two values")
    number, other, holds = (a, second, True) if a is not None else (c, first, False)
    assert number is not None
    tensor = torch.tensor(_number(b, other)) if _number(b, other) is not None else b.constant(other)
    x: Place | Tensor = b.place(other) if tensor is None else tensor.float()
    if table is not None:
        bounds = _looked_up_bounds(b, condition, table if holds else ~table, number, x)
    else:
        bounds = _computed_bounds(b, condition, holds, number)
    shape = nodes.sizes(nodes.value(node))  # type: ignore[arg-type]
    for i, (op, bound) in enumerate(bounds):
        format = stored(node) if i == len(bounds) - 1 else None
        x = joined(b, op, x, bound, shape, format)
    if isinstance(x, Tensor):
        raise LeftToTorch("it chooses a constant")
    b.put(node, x)


def _looked_up_bounds(
    b: Builder, condition: fx.Node, chosen: Tensor, number: float, x: Place | Tensor
) -> list[tuple[str, Place]]:
    """What holds x to a number where it is chosen, and to nothing elsewhere."""
    most = torch.where(chosen, number, math.inf)
    least = torch.where(chosen, number, -math.inf)
    return [
        (op, looked_up(b, condition, bound, None))
        for op, bound in (("min", most), ("max", least))
        if _bounds(op, bound, x)
    ]


def _computed_bounds(
    b: Builder, condition: Any, holds: bool, number: float
) -> list[tuple[str, Place]]:
    """The same of truth values that are 1 and 0: the number, less or plus a logarithm that is 0 or -inf."""
    given = numbers(b, condition)
    one = torch.tensor(1.0)
    if math.isinf(number):
        kept = joined(b, "sub", one, given, given.shape, None) if holds else given
        return [("add" if number < 0 else "sub", _log(b, kept))]
    away = _log(b, given if holds else joined(b, "sub", one, given, given.shape, None))
    wanted = torch.tensor(number)
    most = joined(b, "sub", wanted, away, away.shape, None)
    return [("min", most), ("max", joined(b, "add", wanted, away, away.shape, None))]


def _log(b: Builder, x: Place) -> Place:
    x = b.compact(x)
    y = b.write_like(x, None)
    b.compute("unary", x, y, function="log")
    return y


def _bounds(op: str, bound: Tensor, x: Place | Tensor) -> bool:
    """Whether any value can lie beyond a bound."""
    if isinstance(x, Tensor):
        return bool(x.max() > bound.min() if op == "min" else x.min() < bound.max())
    return bool((bound != (math.inf if op == "min" else -math.inf)).any())


def _number(b: Builder, operand: Any) -> float | None:
    if isinstance(operand, int | float):
        return float(operand)
    tensor = b.constant(operand)
    return float(tensor) if tensor is not None and tensor.numel() == 1 else None
