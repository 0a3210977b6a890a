"""What torch makes where its steps meet programs: views, which are strides to it, and what it computes on planes.

A program would copy: what it takes and hands out lies in memory in its own order.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from qkernels.graph import nodes
from qkernels.graph.builder import why_no_input
from qkernels.graph.formats import Role, data_of
from qkernels.graph.lower import Rows
from qkernels.graph.steps.moves import VIEWS


def views_of_torch(graph: fx.Graph, row_of: Rows) -> set[fx.Node]:
    """The views that torch makes: of its values for programs, and of values of programs for its steps."""
    return _of_its_values(graph, row_of) | _for_its_steps(graph, row_of)


def planes_of_torch(graph: fx.Graph, row_of: Rows) -> set[fx.Node]:
    """The steps that torch takes as well as a program does, on planes that a program would turn into pixels first.

    They join values for steps of torch's alone, or compute torch's bits from images that are all torch's.
    """
    found: set[fx.Node] = set()
    for node in graph.nodes:
        row, given = row_of(node), data_of(node)
        if row is None or not row.exact:
            continue
        if row.role is Role.MOVES and len(given) > 1:
            around = list(node.users)
        elif row.role is Role.COMPUTES and any(len(nodes.shape(x) or ()) == 4 for x in given):
            around = given
        else:
            continue
        if around and all(x in found or _is_torchs(x, row_of) for x in around):
            found.add(node)
    return found


def _of_its_values(graph: fx.Graph, row_of: Rows) -> set[fx.Node]:
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if _is_view(node, row_of):
            x = node.args[0]
            if x in found or (_is_torchs(x, row_of) and nodes.shape(x) is not None):
                found.add(node)
    for node in reversed(graph.nodes):
        read_by_programs = any(u not in found and not _is_torchs(u, row_of) for u in node.users)
        if node in found and read_by_programs and why_no_input(node):
            found -= _views_below(node, found)
    return found


def _for_its_steps(graph: fx.Graph, row_of: Rows) -> set[fx.Node]:
    """Not those of an image, which programs hold as NHWC: there a view of NCHW may be what needs no copy."""
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if not _is_view(node, row_of) or len(_shape_viewed(node, row_of)) not in (2, 3):
            continue
        if node.users and all(u in found or _is_torchs(u, row_of) for u in node.users):
            found.add(node)
    return found


def _shape_viewed(node: Any, row_of: Rows) -> tuple[int, ...]:
    """The sizes of the value that it is a view of, by one view or several."""
    while isinstance(node, fx.Node) and _is_view(node, row_of):
        node = node.args[0]
    return nodes.shape(node) or ()


def _is_view(node: fx.Node, row_of: Rows) -> bool:
    return node.target in VIEWS and row_of(node) is not None


def _is_torchs(node: Any, row_of: Rows) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and row_of(node) is None


def _views_below(node: fx.Node, views: set[fx.Node]) -> set[fx.Node]:
    below = {node}
    for user in node.users:
        if user in views:
            below |= _views_below(user, views)
    return below


def call_methods(views: set[fx.Node]) -> None:
    """Make the views as calls of a tensor's methods, which take half the time that calls of operators do."""
    for node in views:
        name = node.target.overloadpacket.__name__  # type: ignore[union-attr]
        if hasattr(Tensor, name):
            node.op, node.target = "call_method", name
