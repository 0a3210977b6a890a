"""The table of steps: which ATen operators programs take, and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from qkernels.graph import nodes
from qkernels.graph.builder import Builder
from qkernels.graph.formats import Role

Lowering = Callable[[Builder, fx.Node], None]


@dataclass(frozen=True)
class Row:
    """How an operator becomes steps of a program.

    Attributes:
        role: what it does to the format of its value.
        exact: whether the steps return torch's bits.
        lower: puts the steps into a program; raises `LeftToTorch` where they cannot do what is asked.
    """

    role: Role
    exact: bool
    lower: Lowering


TABLE: dict[Any, Row] = {}  # of operators that give float32
INTEGERS: dict[Any, Row] = {}  # of operators that give integers or truth values


def step(
    *operators: Any, role: Role, exact: bool = False, table: dict[Any, Row] = TABLE
) -> Callable[[Lowering], Lowering]:
    """Enter a lowering into the table for these operators."""

    def enter(lower: Lowering) -> Lowering:
        for operator in operators:
            table[operator] = Row(role, exact, lower)
        return lower

    return enter


def role_of(found: Row | None) -> Role | None:
    """What a row does to the format of a value; None for no row."""
    return None if found is None else found.role


def row(node: fx.Node, exact: bool) -> Row | None:
    """The row of a node; None where torch computes it."""
    x = nodes.value(node)
    if node.op != "call_function" or x is None:
        return None
    table = _TABLES.get(x.dtype, {})
    found = table.get(node.target)
    return None if found is None or (exact and not found.exact) else found


_TABLES = {torch.float32: TABLE} | dict.fromkeys((torch.int64, torch.int32, torch.bool), INTEGERS)
