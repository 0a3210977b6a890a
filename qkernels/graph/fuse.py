"""Adds, functions and clamps move into the epilogue of the int8 layer before; layers that read one value become one."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

import qkernels.ops  # noqa: F401  (the operators)
from qkernels.graph import nodes, tables
from qkernels.graph.report import LayerChain
from qkernels.nn import QuantLinear

aten, ours = torch.ops.aten, torch.ops.qkernels
LAYERS = (ours.conv2d.default, ours.linear.default)


def is_layer(node: Any) -> bool:
    """Whether it is an int8 layer that a chain can take, in float32."""
    return isinstance(node, fx.Node) and node.target in LAYERS and nodes.shape(node) is not None


def name_layers(graph: fx.GraphModule) -> None:
    """Say of every int8 layer its name in the model and the scale of its input."""
    for node in graph.graph.nodes:
        if not is_layer(node):
            continue
        given = nodes.arguments(node)
        node.meta["layer"] = str(given["weight"].target).rpartition(".")[0] or node.name
        scale, zero = given["input_scale"], given["input_zero_point"]
        node.meta["input"] = None
        if scale is not None:
            scale, zero = nodes.tensor_of(graph, scale), nodes.tensor_of(graph, zero)
            node.meta["input"] = float(scale), int(zero)


# ---- epilogues


@dataclass
class Epilogue:
    """What a layer takes in of the steps behind it, in the order in which it does them."""

    taken: list[fx.Node]  # the layer and the steps
    residual: fx.Node | None = None
    activation: tuple[str, float] | None = None  # a function and its parameter
    clamp: tuple[float, float] | None = None

    def takes(self, user: fx.Node, activations: bool) -> bool:
        """Whether the next step is one more of its parts."""
        if self.clamp is not None:
            return False
        if self.activation is None:
            if self.residual is None:
                self.residual = added_to(user, self.taken[-1])
                if self.residual is not None:
                    return True
            self.activation = tables.name_of(user) if activations else None
            if self.activation is not None:
                return True
        self.clamp = clamp_of(user)
        return self.clamp is not None


def fuse(graph: fx.GraphModule, *, activations: bool) -> dict[fx.Node, LayerChain]:
    """Every int8 layer, in order, with what it took in.

    Where two layers meet in an add, the later one takes it, since its other operand is then known.
    ``activations``: functions such as SiLU too, computed in float32 before the value is rounded.
    """
    fused = {}
    for node in reversed(list(graph.graph.nodes)):
        if is_layer(node):
            new, row = _fuse_one(graph.graph, node, activations)
            fused[new] = row
    return dict(reversed(fused.items()))


def _fuse_one(graph: fx.Graph, node: fx.Node, activations: bool) -> tuple[fx.Node, LayerChain]:
    ends = Epilogue([node])
    taken = ends.taken
    while len(taken[-1].users) == 1:
        user = next(iter(taken[-1].users))
        if not ends.takes(user, activations):
            break
        taken.append(user)
    row = LayerChain(str(node.meta["layer"]), "float32", tuple(nodes.where(n) for n in taken[1:]))
    if len(taken) == 1:
        return node, row
    with graph.inserting_after(taken[-1]):
        new = graph.create_node("call_function", node.target, node.args, node.kwargs)
    new.meta = dict(node.meta) | {"activation": ends.activation}
    low, high = ends.clamp or (None, None)
    nodes.set_arguments(new, residual=ends.residual, clamp_min=low, clamp_max=high)
    taken[-1].replace_all_uses_with(new)
    for old in reversed(taken):
        graph.erase_node(old)
    return new, row


_CLAMPS = (
    aten.hardtanh.default,
    aten.clamp.default,
    aten.clamp_min.default,
    aten.clamp_max.default,
)
_LEAST, _MOST = ("min", "min_val"), ("max", "max_val")


def clamp_of(node: fx.Node) -> tuple[float, float] | None:
    """The bounds that a step holds its input to."""
    if node.target in (aten.relu.default,):
        return 0.0, math.inf
    if node.target is aten.relu6.default:
        return 0.0, 6.0
    if node.target in _CLAMPS:
        given = nodes.arguments(node)
        low, high = (
            next((given[k] for k in names if k in given), None) for names in (_LEAST, _MOST)
        )
        if all(v is None or isinstance(v, int | float) for v in (low, high)):
            low, high = -math.inf if low is None else low, math.inf if high is None else high
            return (float(low), float(high)) if low <= high else None
    return None


def added_to(node: fx.Node, value: fx.Node) -> fx.Node | None:
    """The other operand where ``node`` adds a tensor of the same shape to ``value``."""
    if node.target not in (aten.add.Tensor,) or nodes.arguments(node)["alpha"] != 1:
        return None
    a, b = node.args[:2]
    other = b if a is value else a
    if other is value or not isinstance(other, fx.Node):
        return None
    if nodes.unrepeated(other).op == "get_attr":
        return None
    x, y = nodes.value(value), nodes.value(other)
    same = x is not None and y is not None and nodes.alike(x, y)
    return other if same else None


# ---- query, key and value as one product


def merge_linears(graph: fx.GraphModule, model: nn.Module) -> None:
    """Make one of the int8 linear layers that read one value in one scheme.

    Layers that read one value quantize it once each. One layer with their output channels side by side quantizes it
    once, and returns the same bits: a channel's result depends on its own weights alone. A layer whose reader could
    join its epilogue (ReLU, residual add) or take its int8 (another int8 layer) is left as it is: slices of a common
    output would cost more than they save.
    """
    groups: dict[Any, list[fx.Node]] = defaultdict(list)
    for node in graph.graph.nodes:
        if not is_layer(node) or node.target is not ours.linear.default:
            continue
        layer = _module(model, node)
        if layer is None or not _adds_own_bias(graph, node, layer):
            continue
        if not any(_joins(user, node) for user in node.users):
            groups[node.args[0], layer.activation, layer.symmetric, node.meta["input"]].append(node)
    for group in groups.values():
        if len({str(node.meta["layer"]) for node in group}) == len(group) > 1:
            _merge(graph, group, [cast(QuantLinear, _module(model, node)) for node in group])


def _module(model: nn.Module, node: fx.Node) -> QuantLinear | None:
    try:
        module = model.get_submodule(str(node.meta["layer"]))
    except AttributeError:
        return None
    return module if isinstance(module, QuantLinear) else None


def _adds_own_bias(graph: fx.GraphModule, node: fx.Node, layer: QuantLinear) -> bool:
    """Whether the bias is the layer's; a forward that reads the weight may add another."""
    bias, own = nodes.arguments(node)["bias"], layer._buffers["bias"]
    if bias is None or own is None:
        return bias is own
    if bias.op != "get_attr":
        return False
    given = nodes.tensor_of(graph, bias)
    return given is own or torch.equal(given, own)


def _joins(user: fx.Node, node: fx.Node) -> bool:
    """Whether chaining would give the layer something to do with this reader."""
    return is_layer(user) or clamp_of(user) is not None or added_to(user, node) is not None


def _merge(graph: fx.GraphModule, group: list[fx.Node], layers: list[QuantLinear]) -> None:
    first = group[0]
    parent = str(first.meta["layer"]).rpartition(".")[0]
    name = "_".join(str(node.meta["layer"]).rpartition(".")[2] for node in group)
    name = f"{parent}.{name}" if parent else name
    operands = side_by_side(layers)._buffers
    prefix = f"merged_{first.name}"
    with graph.graph.inserting_before(first):
        held = {
            argument: nodes.constant(graph, f"{prefix}_{key}", tensor)
            for argument, key in _OPERANDS.items()
            if (tensor := operands.get(key)) is not None
        }
        merged = graph.graph.create_node("call_function", first.target, first.args, first.kwargs)
        nodes.set_arguments(merged, **{"bias": None, **held})
        merged.meta = dict(first.meta) | {"layer": name, "val": _side_by_side(group)}
        start = 0
        for node, layer in zip(group, layers, strict=True):
            stop = start + layer.out_features
            part = graph.graph.call_function(aten.slice.Tensor, (merged, -1, start, stop))
            part.meta, start = {"val": node.meta["val"]}, stop
            node.replace_all_uses_with(part)
    for node in group:
        graph.graph.erase_node(node)


_OPERANDS = {
    "weight": "packed_weight", "weight_scale": "weight_scale", "bias": "bias", "input_scale": "input_scale",
    "input_zero_point": "input_zero_point",
}  # fmt: skip


def _side_by_side(group: list[fx.Node]) -> Tensor:
    return torch.cat([cast(Tensor, nodes.value(node)) for node in group], -1)


def side_by_side(layers: list[QuantLinear]) -> QuantLinear:
    """One layer with the output channels of all; their inputs are quantized alike."""
    first = layers[0]
    biases = [
        layer.bias if layer.bias is not None else torch.zeros_like(layer.weight_scale)
        for layer in layers
    ]
    has_bias = any(layer.bias is not None for layer in layers)
    merged = QuantLinear(
        first.in_features,
        sum(layer.out_features for layer in layers),
        has_bias,
        first.packed_weight.device,
        first.anchor.dtype,
        activation=cast(Any, first.activation),
        symmetric=first.symmetric,
    )
    state: dict[str, Tensor] = {
        "int8_weight": torch.cat([layer.int8_weight for layer in layers]),
        "weight_scale": torch.cat([layer.weight_scale for layer in layers]),
    }
    if has_bias:
        state["bias"] = torch.cat(biases)
    if first.input_scale is not None and first.input_zero_point is not None:
        state |= {"input_scale": first.input_scale, "input_zero_point": first.input_zero_point}
    merged.load_state_dict(state)
    return merged


__all__ = ["LAYERS", "fuse", "is_layer", "merge_linears", "name_layers"]
