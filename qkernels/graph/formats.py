"""The format of every value of a graph: int8 where its readers want the scale of an int8 layer, else float32."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

from torch import fx

from qkernels.graph import nodes, tables
from qkernels.graph.fuse import ours
from qkernels.graph.tables import QParams

Format = QParams | None  # int8 of this scale, or float32
ANY: Any = "any"  # a reader that takes either


class Role(Enum):
    """What a step does to the format of a value."""

    LAYER = "reads its own scale or float32, writes any"
    MOVES = "does the same to int8 as to float32"
    TABLE = "a function of one value, which int8 takes to int8"
    COMPUTES = "reads any format, writes any"


Roles = Callable[[fx.Node], Role | None]


def stored(node: fx.Node) -> Format:
    """The int8 format that a value was given; None: float32."""
    format: Format = node.meta.get("int8")
    return format


class Formats:
    """What the readers of every value want, from the last value to the first.

    What a linear layer adds is float32: a layer of tokens that reads the same value quantizes its rows as it takes
    them, nearly for nothing, while int8 would cost a transformer 12 dB. A convolution adds int8 where another
    convolution reads that; an image is large beside its layers' work.

    ``role``: of the steps that are ours; torch computes the others, in float32. ``exact``: an operand that the model
    reads as float32 is not read as int8. ``rescales``: a reader may have another scale than the value.
    """

    def __init__(self, graph: fx.Graph, role: Roles, *, exact: bool, rescales: bool) -> None:
        self.graph, self.role, self.exact, self.rescales = graph, role, exact, rescales
        self.why: dict[fx.Node, str] = {}
        self._wants: dict[fx.Node, Format] = {}
        self._floats: set[fx.Node] = set()
        while True:
            self._ask()
            mixed = {n for n in graph.nodes if n not in self._floats and self._is_mixed(n)}
            if not mixed:
                break
            self._floats |= mixed
        self._give()

    def _ask(self) -> None:
        self._wants.clear()
        for node in reversed(self.graph.nodes):
            asked = {user: self._asked_by(user, node) for user in node.users}
            self._wants[node], self.why[node] = self._agreed(node, asked)

    def _asked_by(self, user: fx.Node, node: fx.Node) -> Format:
        role = self.role(user)
        if role is Role.LAYER:
            given = nodes.arguments(user)
            if given["residual"] is node and (self.exact or given["x"] is not node):
                return None if self.exact or user.target is ours.linear.default else ANY
            return input_of(user)
        if role is Role.MOVES:
            joins = len(data_of(user)) > 1
            return None if joins and self._wants[user] is ANY else self._wants[user]
        if role is Role.TABLE and isinstance(self._wants[user], tuple) and not self.exact:
            return tables.input_format(tables.function_of(user), self._wants[user])  # type: ignore[arg-type]
        if role in (Role.COMPUTES, Role.TABLE):
            return None if self.exact else ANY
        asks_for_sizes = nodes.value(user) is None and user.op != "output"
        return ANY if asks_for_sizes else None

    def _agreed(self, node: fx.Node, asked: dict[fx.Node, Format]) -> tuple[Format, str]:
        formats = {f for f in asked.values() if f is not ANY}
        floats = [_reader(u, node) for u, f in asked.items() if f is None]
        if node in self._floats:
            return None, "a part of what it joins is float"
        if not formats:
            return ANY, "only a residual add reads it"
        if floats:
            return None, f"read in float by {', '.join(floats)}"
        if len(formats) == 1:
            return formats.pop(), ""
        if self.rescales:
            return _covering([f for f in formats if f]), ""
        return None, f"its readers want {len(formats)} scales"

    def _is_mixed(self, node: fx.Node) -> bool:
        """Whether it joins values of which one cannot be int8."""
        parts = node.all_input_nodes
        return (
            self.role(node) is Role.MOVES
            and len(parts) > 1
            and isinstance(self._wants[node], tuple)
            and any(self._is_float(x) for x in parts)
        )

    def _is_float(self, node: fx.Node) -> bool:
        role = self.role(node)
        if role is None or not isinstance(self._wants[node], tuple):
            return True
        if role is Role.MOVES:
            return any(self._is_float(x) for x in node.all_input_nodes)
        return role is Role.TABLE and self.exact

    def _give(self) -> None:
        for node in self.graph.nodes:
            role, want = self.role(node), self._wants[node]
            format = want if role is not None and isinstance(want, tuple) else None
            if role is Role.MOVES:
                format = self._moved(format, {stored(x) for x in data_of(node)})
            if role is Role.TABLE and stored(data_of(node)[0]) is None and not self.rescales:
                format = None
            node.meta["int8"] = format

    def _moved(self, want: Format, sources: set[Format]) -> Format:
        """The format of moved values: that of what is moved, or what is wanted where readers rescale."""
        if len(sources) == 1:
            return sources.pop()
        return want if self.rescales and None not in sources else None


def data_of(node: fx.Node) -> list[fx.Node]:
    """The tensors among what a step reads."""
    return [x for x in node.all_input_nodes if nodes.value(x) is not None]


def input_of(layer: fx.Node) -> Format:
    """The scale an int8 layer's input must have; None where it finds its own (dynamic)."""
    return layer.meta["input"]


def _reader(user: fx.Node, node: fx.Node) -> str:
    if "layer" in user.meta:
        adds = nodes.arguments(user)["residual"] is node
        return f"the add of {user.meta['layer']}" if adds else str(user.meta["layer"])
    return user.name


def _covering(formats: list[QParams]) -> QParams:
    """The scale of all values that one of these scales has."""
    lo = min((-128 - zero) * scale for scale, zero in formats)
    hi = max((127 - zero) * scale for scale, zero in formats)
    scale = (hi - lo) / 255
    return scale, max(-128, min(127, round(-128 - lo / scale)))
