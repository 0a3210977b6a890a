"""Integers and truth values in a program: functions of the words that an int64 input holds.

A program computes in float32 and int8. What follows from one integer alone, such as whether a token is padding, is a
table with a row for every word that the input may hold; only where a float step reads it is it looked up. Joined truth
values are float32, 1 and 0.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from qkernels.graph import nodes
from qkernels.graph.builder import Builder, LeftToTorch, output_fields
from qkernels.graph.formats import Format
from qkernels.graph.places import Atom, Place

EMBEDDINGS = {  # operator -> the arguments that are its ids, and one with a row or a number for every word
    torch.ops.aten.embedding.default: ("indices", "weight"),
    torch.ops.qkernels.embedding.default: ("ids", "weight_scale"),
}
LARGEST = 2**24  # beyond it float32 leaves integers out


def table_of(b: Builder, node: fx.Node) -> Tensor | None:
    """The values of a node for words 0, 1, ...; None where it does not follow from one word.

    Raises:
        LeftToTorch: the example holds words of which there are no rows.
    """
    x = nodes.value(node)
    if x is None or not nodes.is_integer(node):
        return None
    if node.op != "placeholder":
        if b.constant(node) is None:
            b.place(node)
        return b.tables.get(node)
    count = _count(node)
    low, high = node.meta.get("range", (0, count - 1))
    if low < 0 or high >= count:
        raise LeftToTorch(f"its integers go from {low} to {high}, not from 0 to {count - 1}")
    return torch.arange(count).to(x.dtype)


def _count(node: fx.Node) -> int:
    """How many words an input has: the rows of the tables that it is looked up in; 2 for the rest, which are masks."""
    found = [2]
    for user in node.users:
        if user.target in EMBEDDINGS:
            ids, rows = (nodes.arguments(user)[name] for name in EMBEDDINGS[user.target])
            found += [nodes.hint(nodes.value(rows).shape[0])] if ids is node else []  # type: ignore[union-attr]
        elif getattr(user.target, "overloadpacket", None) in _VIEWS:
            found.append(_count(user))
    return max(found)


_VIEWS = (torch.ops.aten.reshape, torch.ops.aten.unsqueeze, torch.ops.aten.slice)


def numbers(b: Builder, node: fx.Node) -> Place:
    """A tensor as float32 or, where it is, int8; truth values are 1 and 0."""
    table = table_of(b, node)
    if table is not None:
        return looked_up(b, node, table, None)
    place = b.place(node)
    if b.values[place.value].dtype == "int64":
        raise LeftToTorch("it reads integers that torch computes")
    return place


def looked_up(b: Builder, node: fx.Node, table: Tensor, format: Format) -> Place:
    """The tensor whose number is, for every word of the node's, that of the table."""
    if not table.is_floating_point() and int(table.long().abs().max()) > LARGEST:
        raise LeftToTorch("it has integers that float32 has not")
    x, rows = b.place(node), table.float()
    words = b.values[x.value]
    if words.dtype != "int64" or words.rank != 2:
        raise LeftToTorch("its words are no int64 [N, T] of the caller's")
    key = (x.value, rows.numpy().tobytes(), format)
    if key not in b.known:
        b.known[key] = _embedding(b, x, rows, format)
    atoms = tuple(_as_token(a) for a in x.atoms)
    return Place(b.known[key].value, atoms, x.axes)


def _embedding(b: Builder, x: Place, rows: Tensor, format: Format) -> Place:
    whole = tuple(Atom(a.axis, a.size, a.fixed) for a in map(_as_token, x.atoms))
    y = b.write(Place(-1, whole, ()), 3, format)
    made = b.add(
        "embedding",
        b.beside("embedding"),
        b.read(x),
        y.value,
        rows=len(rows),
        **output_fields(format),
    )
    made.constants["table"] = b.array(rows.unsqueeze(1))
    return y


def _as_token(atom: Atom) -> Atom:
    """The place of the words of [n, t] in [n, t, 1]."""
    axis = 1 if atom.axis == 3 else atom.axis
    return Atom(axis, atom.size, atom.fixed, atom.start, atom.stride, atom.count)
