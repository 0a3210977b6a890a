"""Query, key and value of an attention block as one product.

Linear layers that read one value quantize it once each. One layer with their output channels side by side quantizes it
once, and returns the same bits: a channel's result depends on its own weights alone. Of an encoder's time (6 layers of
width 384, 128 tokens, one thread) this saves two or three per cent, of a batch of 8 nothing that could be measured.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx

from qkernels.graph import trace as nodes
from qkernels.nn import QuantLinear
from qkernels.nn.module import QuantModule
from qkernels.reports import hang


@dataclass
class Merged:
    """The report of `merge_linears_`.

    Attributes:
        names: of the new layers.
    """

    names: list[str]


def merge_linears_(traced: fx.GraphModule) -> fx.GraphModule:
    """Make one of the int8 linear layers that read one value in one scheme, in place; returns `traced`.

    ``traced``: from `qkernels.graph.trace.trace`. A layer whose reader could join its epilogue (ReLU, residual add) or
    take its int8 (another int8 layer) is left as it is: slices of a common output would cost more than they save.
    """
    groups: dict[Any, list[fx.Node]] = defaultdict(list)
    for node in traced.graph.nodes:
        layer = nodes.module_of(traced, node)
        if not isinstance(layer, QuantLinear) or len(node.args) != 1 or node.kwargs:
            continue
        if not any(_joins(traced, user, node) for user in node.users):
            groups[node.args[0], _input_scheme(layer)].append(node)
    names = [_merge(traced, group) for group in groups.values() if len(group) > 1]
    return hang(traced, Merged(names))


def _joins(traced: fx.GraphModule, user: fx.Node, node: fx.Node) -> bool:
    """Whether chaining would give the layer something to do with this reader."""
    reads_int8 = isinstance(nodes.module_of(traced, user), QuantModule)
    fuses = nodes.clamp_of(traced, user) or nodes.added_to(user, node)
    return reads_int8 or fuses is not None


def _input_scheme(layer: QuantLinear) -> tuple[Any, ...]:
    static = (layer.input_scale, layer.input_zero_point)
    values = tuple(None if t is None else t.item() for t in static)
    return layer.activation, layer.symmetric, values


def _merge(traced: fx.GraphModule, group: list[fx.Node]) -> str:
    first = group[0]
    layers = [cast(QuantLinear, nodes.module_of(traced, node)) for node in group]
    parent = str(first.target).rpartition(".")[0]
    name = "_".join(str(node.target).rpartition(".")[2] for node in group)
    name = f"{parent}.{name}" if parent else name
    traced.add_submodule(name, side_by_side(layers))
    with traced.graph.inserting_before(first):
        merged = traced.graph.call_module(name, (first.args[0],))
        merged.meta = _meta(first, sum(layer.out_features for layer in layers))
        start = 0
        for node, layer in zip(group, layers, strict=True):
            stop = start + layer.out_features
            index: Any = (..., slice(start, stop))
            part = traced.graph.call_function(operator.getitem, (merged, index))
            part.meta, start = dict(node.meta), stop
            node.replace_all_uses_with(part)
    for node in group:
        traced.graph.erase_node(node)
    traced.recompile()
    return name


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


def _meta(node: fx.Node, outputs: int) -> dict[str, Any]:
    """The meta of a node, with another last dimension."""
    tensor = node.meta["tensor_meta"]
    return dict(node.meta) | {
        "tensor_meta": tensor._replace(shape=torch.Size((*tensor.shape[:-1], outputs)))
    }
