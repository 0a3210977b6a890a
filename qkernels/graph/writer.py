"""Adds steps to a graph in the place of one, with the tensors without values that they give."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._guards import detect_fake_mode

from qkernels.graph import nodes

aten = torch.ops.aten


class Writer:
    """Adds steps where ``node`` stands, with its place in the model."""

    def __init__(self, node: fx.Node) -> None:
        self.node = node

    def __call__(self, operator: Any, *args: Any, **kwargs: Any) -> fx.Node:
        new = self.node.graph.call_function(operator, args, kwargs)
        given, named = fx.map_arg((args, kwargs), lambda n: n.meta["val"])
        new.meta = dict(self.node.meta) | {"val": operator(*given, **named)}
        return new

    def constant(self, tensor: torch.Tensor) -> fx.Node:
        """A node of that tensor."""
        new = nodes.constant(self.graph, f"constant_{self.node.name}", tensor)
        mode = detect_fake_mode(self.node.meta["val"])
        assert mode is not None
        new.meta["val"] = mode.from_tensor(tensor)
        return new

    def tensor(self, node: fx.Node) -> torch.Tensor | None:
        """The tensor of the model that a node is; None for any other."""
        return nodes.tensor_of(self.graph, node) if node.op == "get_attr" else None

    def size(self, wanted: int | torch.SymInt) -> Any:
        """That size, as one of an input where it is free; None where no input has it."""
        if nodes.is_fixed(wanted):
            return nodes.hint(wanted)
        for node in self.node.graph.find_nodes(op="placeholder"):
            x = nodes.value(node)
            for i, size in enumerate(() if x is None else x.shape):
                if nodes.same_size(size, wanted):
                    return self(aten.sym_size.int, node, i)
        return None

    @property
    def graph(self) -> fx.GraphModule:
        module = self.node.graph.owning_module
        assert module is not None
        return module
