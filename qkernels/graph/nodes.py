"""What passes ask a graph's nodes: their tensors without values, sizes, arguments, constants."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

# ---- tensors and their sizes


def value(node: Any) -> Tensor | None:
    """The tensor without values that a node is for the example; None for anything else."""
    found = node.meta.get("val") if isinstance(node, fx.Node) else None
    return found if isinstance(found, Tensor) else None


def shape(node: Any) -> tuple[int, ...] | None:
    """The sizes of a float32 tensor for the example; None for any other node."""
    x = value(node)
    return None if x is None or x.dtype != torch.float32 else sizes(x)


def is_integer(node: fx.Node) -> bool:
    """Whether it is a tensor of integers or truth values."""
    x = value(node)
    return x is not None and x.dtype in (torch.int64, torch.int32, torch.bool)


def sizes(x: Tensor) -> tuple[int, ...]:
    """The sizes of a tensor for the example."""
    return tuple(hint(s) for s in x.shape)


def hint(size: Any) -> int:
    """What a size is for the example."""
    if isinstance(size, torch.SymInt):
        known = size.node.maybe_as_int()
        return int(size.node.hint if known is None else known)
    return int(size)


def expression(size: Any) -> Any:
    return size.node.expr


def is_fixed(size: Any) -> bool:
    """Whether a size is the model's, not the input's."""
    return isinstance(size, int) or size.node.maybe_as_int() is not None


def alike(x: Tensor, y: Tensor) -> bool:
    """Whether dtype, device and every size are the same, for any input."""
    same = x.dtype == y.dtype and x.device == y.device and x.dim() == y.dim()
    return same and all(same_size(a, b) for a, b in zip(x.shape, y.shape, strict=True))


def same_size(a: int | torch.SymInt, b: int | torch.SymInt) -> bool:
    """Whether two sizes are the same for any input."""
    if is_fixed(a) and is_fixed(b):
        return hint(a) == hint(b)
    return not (is_fixed(a) or is_fixed(b)) and bool(expression(a) == expression(b))


# ---- batches, the first sizes of the inputs, of which a model may have several


def with_batch_of(graph: fx.Graph, x: Tensor) -> fx.Node | None:
    """The first input of the model that has the batch of ``x``; None where none has."""
    for node in graph.find_nodes(op="placeholder"):
        own = value(node)
        if own is not None and own.dim() and x.dim() and same_size(own.shape[0], x.shape[0]):
            return node
    return None


def batches(graph: fx.Graph) -> set[Any]:
    """The symbols of the batches that are free."""
    given = (value(node) for node in graph.find_nodes(op="placeholder"))
    first = [x.shape[0] for x in given if x is not None and x.dim()]
    return {s for size in first if not is_fixed(size) for s in expression(size).free_symbols}


def batch_of(x: Tensor, known: set[Any]) -> Any:
    """Which of these symbols the sizes of a tensor follow from; None: from none, or several."""
    free = (expression(size).free_symbols for size in x.shape if not is_fixed(size))
    found = known.intersection(*[set().union(*free)])
    return found.pop() if len(found) == 1 else None


# ---- arguments and places


def arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of an operator by name, with defaults."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    given = dict(zip((a.name for a in schema), node.args, strict=False)) | node.kwargs
    return {a.name: given.get(a.name, a.default_value) for a in schema}


def set_arguments(node: fx.Node, **new: Any) -> None:
    """Change arguments of an operator by name."""
    given = arguments(node) | new
    node.args = tuple(given[a.name] for a in node.target._schema.arguments)  # type: ignore[union-attr]
    node.kwargs = {}


def where(node: fx.Node) -> str:
    """The place in the model of a step: the name of the module in whose call it is computed, then the operator."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    name = stack[-1][0].rpartition("L['self'].")[2] if stack else ""
    packet = getattr(node.target, "overloadpacket", None)
    step = packet.__name__ if packet is not None else node.name
    return f"{name} ({step})" if name else step


def unrepeated(node: Any) -> Any:
    """What a node repeats for the sizes of others; the node itself where it repeats nothing."""
    while isinstance(node, fx.Node) and node.target is torch.ops.aten.expand.default:
        node = node.args[0]
    return node


def has_many_owners(node: fx.Node) -> bool:
    """Whether each program that reads it has it anew: integers, and what repeats a tensor of the model."""
    return is_integer(node) or unrepeated(node).op == "get_attr"


# ---- tensors of the model

_FILLED = {  # operator -> what it fills a new tensor with; None: with its argument
    torch.ops.aten.new_zeros.default: 0, torch.ops.aten.new_ones.default: 1, torch.ops.aten.new_full.default: None,
    torch.ops.aten.zeros_like.default: 0, torch.ops.aten.ones_like.default: 1, torch.ops.aten.full_like.default: None,
}  # fmt: skip


def filled_with(node: fx.Node) -> Any:
    """The number that a new tensor, which takes its form alone from another, is filled with; None for other nodes."""
    if node.target not in _FILLED:
        return None
    number = _FILLED[node.target]
    return arguments(node)["fill_value"] if number is None else number


def put_constant(graph: fx.GraphModule, node: fx.Node, tensor: Tensor) -> fx.Node:
    """Put a tensor in the place of a node."""
    with graph.graph.inserting_before(node):
        new = constant(graph, f"constant_{node.name}", tensor)
    new.meta["val"] = node.meta.get("val", tensor)
    node.replace_all_uses_with(new)
    graph.graph.erase_node(node)
    return new


def constant(graph: fx.GraphModule, name: str, tensor: Tensor) -> fx.Node:
    """A node of that tensor, where the graph's insertion point is."""
    graph.register_buffer(name, tensor.detach())
    node = graph.graph.get_attr(name)
    node.meta["val"] = tensor
    return node


def repeated(graph: fx.GraphModule, name: str, tensor: Tensor, batch: Any) -> fx.Node:
    """A node that repeats a tensor [1, ...] for a batch, where the insertion point is; its meta is the caller's."""
    one = constant(graph, name, tensor)
    return graph.graph.call_function(
        torch.ops.aten.expand.default, (one, [batch, *[-1] * (tensor.dim() - 1)])
    )


def tensor_of(graph: fx.GraphModule, node: fx.Node) -> Tensor:
    """The tensor that a get_attr node is."""
    found: Any = graph
    for name in str(node.target).split("."):
        found = getattr(found, name)
    return found
