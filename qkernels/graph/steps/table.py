"""The table of steps: which ATen operators programs take, and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx

from qkernels.graph import trace as nodes
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


TABLE: dict[Any, Row] = {}


def step(*operators: Any, role: Role, exact: bool = False) -> Callable[[Lowering], Lowering]:
    """Enter a lowering into the table for these operators."""

    def enter(lower: Lowering) -> Lowering:
        for operator in operators:
            TABLE[operator] = Row(role, exact, lower)
        return lower

    return enter


def role_of(found: Row | None) -> Role | None:
    """What a row does to the format of a value; None for no row."""
    return None if found is None else found.role


def row(node: fx.Node, exact: bool) -> Row | None:
    """The row of a node; None where torch computes it."""
    found = TABLE.get(node.target) if node.op == "call_function" else None
    if found is None or (exact and not found.exact):
        return None
    return found if nodes.shape(node) is not None else None
