"""The graph of a quantized model, with the shape of every value, and what its nodes mean."""

from __future__ import annotations

import inspect
import math
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

from qkernels.eval_mode import answering
from qkernels.nn import MeanPool2d, QuantModule
from qkernels.plain import is_plain
from qkernels.quantization.fold import FoldedBatchNorm

_ADDS = (operator.add, operator.iadd, torch.add)
_RELUS = (torch.relu, F.relu, "relu")
_RESHAPES = (torch.flatten, "flatten", "reshape", "view")


class LayerwiseTracer(fx.Tracer):
    """Leaves our layers whole: their forwards ask what they are given."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = isinstance(m, QuantModule | FoldedBatchNorm | MeanPool2d) or is_plain(m)
        return ours or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module, examples: tuple[Any, ...]) -> fx.GraphModule:
    """``model`` as a graph over its own submodules. Raises ValueError where torch.fx cannot follow it."""
    try:
        with answering(model):  # what a forward keeps of a trace must not stay in the model
            graph = LayerwiseTracer().trace(model, _defaults(model, len(examples)))
            _drop_defaults(graph, len(examples))
            traced = fx.GraphModule(model, graph)
    except Exception as error:  # whatever a forward raises when it meets a proxy
        raise ValueError(
            f"{type(model).__name__} cannot be traced, so it stays un-chained: {error}"
        ) from error
    with torch.no_grad():
        ShapeProp(traced).propagate(*examples)
    for node in graph.nodes:
        _check_in_place(traced, node)
        node.type = None  # a pickle would look for what the annotation names
    return traced


def _defaults(model: nn.Module, given: int) -> dict[str, Any]:
    """The arguments of the forward that the examples leave at their defaults, which are values and no proxies."""
    parameters = list(inspect.signature(type(model).forward).parameters.values())[1:]
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return {p.name: p.default for p in named[given:] if p.default is not p.empty}


def _drop_defaults(graph: fx.Graph, given: int) -> None:
    """Take out the placeholders of those arguments, and the checks that they have their defaults."""
    for node in graph.find_nodes(op="placeholder")[given:]:
        for user in list(node.users):
            for check in [*user.users, user]:
                graph.erase_node(check)
        graph.erase_node(node)


def rebuild(traced: fx.GraphModule) -> None:
    """After its nodes were changed."""
    traced.graph.lint()
    traced.delete_all_unused_submodules()
    traced.recompile()


def module_of(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return traced.get_submodule(str(node.target)) if node.op == "call_module" else None


def shape(node: Any) -> torch.Size | None:
    """Of a node that is one float32 tensor, else None."""
    meta = node.meta.get("tensor_meta") if isinstance(node, fx.Node) else None
    return (
        meta.shape if meta is not None and getattr(meta, "dtype", None) == torch.float32 else None
    )


def is_no_op(traced: fx.GraphModule, node: fx.Node) -> bool:
    module = module_of(traced, node)
    dropout = isinstance(module, nn.modules.dropout._DropoutNd) and not module.training
    return dropout or isinstance(module, nn.Identity)


def _calls(node: fx.Node, targets: tuple[Any, ...]) -> bool:
    """Whether the node calls one of these functions or methods; a submodule may have such a name too."""
    return node.op in ("call_function", "call_method") and node.target in targets


def clamp_of(traced: fx.GraphModule, node: fx.Node) -> tuple[float, float] | None:
    module = module_of(traced, node)
    if isinstance(module, nn.ReLU) or _calls(node, _RELUS):
        return (0.0, math.inf)
    if isinstance(module, nn.Hardtanh):  # ReLU6 is one
        return (float(module.min_val), float(module.max_val))
    return None


def added_to(node: fx.Node, value: fx.Node) -> fx.Node | None:
    """The other operand where ``node`` adds a tensor of the same shape to ``value``."""
    if not _calls(node, _ADDS) or node.kwargs or len(node.args) != 2:
        return None
    other = node.args[1] if node.args[0] is value else node.args[0]
    same = other is not value and shape(value) is not None and shape(other) == shape(value)
    return other if same and isinstance(other, fx.Node) and other.op != "get_attr" else None


def keeps_scale(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the node does to int8 values what it does to floats: moves them, or takes their maximum."""
    if shape(node) is None or not node.args or shape(node.args[0]) is None:
        return False
    module = module_of(traced, node)
    if isinstance(module, nn.MaxPool2d):
        return not module.return_indices and len(shape(node) or ()) == 4
    return (
        isinstance(module, nn.Flatten)
        or _calls(node, (*_RESHAPES, operator.getitem))
        or is_zero_pad(node)
    )


def joined(node: fx.Node) -> list[fx.Node]:
    """The images whose channels the node puts one after the other; empty for any other node."""
    if not _calls(node, (torch.cat, torch.concat)) or not isinstance(node.args[0], list | tuple):
        return []
    parts = [x for x in node.args[0] if isinstance(x, fx.Node)]
    dim = (*node.args[1:], *node.kwargs.values())
    images = all(len(shape(x) or ()) == 4 for x in [*parts, node])
    return parts if images and dim in ((1,), (-3,)) and len(parts) == len(node.args[0]) else []


def is_zero_pad(node: fx.Node) -> bool:
    given = {
        k: v
        for k, v in node.kwargs.items()
        if (k, v) not in (("mode", "constant"), ("value", None))
    }
    return node.target is F.pad and len(node.args) == 2 and not given


def asks_shape(node: fx.Node) -> bool:
    return _calls(node, ("size", "dim")) or (node.target is getattr and node.args[1] == "shape")


def _check_in_place(traced: fx.GraphModule, node: fx.Node) -> None:
    """A graph whose nodes are moved together has no room for a value that changes under its other readers."""
    writes = getattr(module_of(traced, node), "inplace", False) or node.kwargs.get("inplace")
    method = node.op == "call_method" and str(node.target).endswith("_")
    if not (writes or method or node.target is operator.iadd) or not node.args:
        return
    value = node.args[0]
    while isinstance(value, fx.Node) and isinstance(value.meta.get("type"), type):
        if issubclass(value.meta["type"], Tensor) and len(value.users) > 1:
            raise ValueError(
                f"{node.name!r} writes in place into {value.name!r}, which {len(value.users) - 1} other steps read, "
                "so the model stays un-chained: use inplace=False"
            )
        if not (is_no_op(traced, value) or keeps_scale(traced, value)):
            return
        value = value.args[0]
