"""Which layers follow each other so that a channel's scale can move from one to the next."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from qkernels.nn import ClampedReLU
from qkernels.quantization.fold import FoldedBatchNorm, Layer, LayerTracer, has_hooks, own_weight

# f(s * x) = s * f(x) for every s > 0 and channel, and f leaves the order of channels alone.
_MODULES = (
    nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity, FoldedBatchNorm, nn.Dropout, nn.Dropout2d,
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Flatten,
)  # fmt: skip
_FUNCTIONS = {
    torch.relu, F.relu, F.leaky_relu, F.dropout, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d,
    torch.flatten,
}  # fmt: skip
_METHODS = {"relu", "relu_", "flatten"}


@dataclass(frozen=True)
class Chain:
    """`second` reads `first` through `between` alone; full names.

    `between` are names of the modules on the way; functions on it have none. `only_relu` says that nothing but
    ReLU-likes, identities and dropout lie between.
    """

    first: str
    second: str
    between: tuple[str, ...] = field(default=())
    only_relu: bool = True


def find_chains(model: nn.Module) -> list[Chain]:
    """Pairs of Conv2d and Linear with nothing between them that minds the scale of a channel.

    From torch.fx traces; of a model that cannot be traced, from its parts that can. A layer that is shared, called
    twice, hooked or read past its call takes no part.
    """
    registered = Counter(id(m) for _, m in model.named_modules(remove_duplicate=False))
    return [
        chain
        for prefix, part, graph in traced_parts(model)
        for chain in _chains_of(part, graph, prefix)
        if all(registered[id(model.get_submodule(n))] == 1 for n in (chain.first, chain.second))
    ]


def traced_parts(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module, fx.Graph]]:
    """(name prefix, module, graph) of the largest parts that torch.fx can trace."""
    if not any(model.children()):
        return
    try:
        graph = LayerTracer().trace(model)
    except Exception:  # whatever the model's own forward raises on symbolic inputs
        for name, child in model.named_children():
            yield from traced_parts(child, f"{prefix}{name}.")
    else:
        yield prefix, model, graph


def _chains_of(model: nn.Module, graph: fx.Graph, prefix: str) -> Iterator[Chain]:
    calls = Counter(n.target for n in graph.nodes if n.op == "call_module")
    read = {str(n.target).rpartition(".")[0] for n in graph.nodes if n.op == "get_attr"}

    def layer_at(node: fx.Node) -> bool:
        if node.op != "call_module" or calls[node.target] > 1 or node.target in read:
            return False
        module = model.get_submodule(str(node.target))
        return (
            type(module) in (nn.Conv2d, nn.Linear) and own_weight(module) and not has_hooks(module)
        )

    for node in filter(layer_at, graph.nodes):
        between: list[str] = []
        only_relu, at = True, node
        while len(at.users) == 1:
            at = next(iter(at.users))
            if layer_at(at):
                yield Chain(
                    prefix + str(node.target), prefix + str(at.target), tuple(between), only_relu
                )
                break
            if not _keeps_scale(model, at, calls):
                break
            only_relu &= _pointwise(model, at)
            if at.op == "call_module":
                between.append(prefix + str(at.target))


def _keeps_scale(model: nn.Module, node: fx.Node, calls: Counter) -> bool:
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        if has_hooks(module):
            return False
        if type(module) in (nn.ReLU6, ClampedReLU):  # their ceiling moves along: once only
            return calls[node.target] == 1
        return isinstance(module, _MODULES)
    if node.op == "call_method":
        return node.target in _METHODS or _is_spatial_mean(node)
    return node.op == "call_function" and (node.target in _FUNCTIONS or _is_spatial_mean(node))


def _is_spatial_mean(node: fx.Node) -> bool:
    dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    spatial = dims in ((2, 3), [2, 3], (-2, -1), [-2, -1])
    return spatial and node.target in ("mean", torch.mean)


def _pointwise(model: nn.Module, node: fx.Node) -> bool:
    if node.op != "call_module":
        return node.target in (torch.relu, F.relu, F.dropout, "relu", "relu_", operator.pos)
    kinds = (nn.ReLU, nn.ReLU6, ClampedReLU, nn.Identity, FoldedBatchNorm, nn.Dropout)
    return isinstance(model.get_submodule(str(node.target)), kinds)


def layer(model: nn.Module, name: str) -> Layer:
    """The Conv2d or Linear of that name."""
    return cast(Layer, model.get_submodule(name))


def by_input(layer: Layer, channels: int) -> Tensor:
    """A view [channels, ...] of the weight: entry c holds every value that meets input channel c.

    Covers groups, depthwise, and a Linear behind a flattened [C, H, W].
    """
    weight, groups = layer.weight, getattr(layer, "groups", 1)
    per_group = weight.shape[1]
    split = weight.reshape(groups, weight.shape[0] // groups, per_group, -1)
    return split.transpose(1, 2).reshape(channels, -1)


def scale_inputs(layer: Layer, factor: Tensor) -> Tensor:
    """The weight with the values of input channel c multiplied by factor[c]; factor [C]."""
    weight, groups = layer.weight, getattr(layer, "groups", 1)
    per_group = weight.shape[1]
    each = factor.repeat_interleave(groups * per_group // factor.numel())
    spread = each.view(groups, 1, per_group, 1)
    return (weight.reshape(groups, -1, per_group, weight[0, 0].numel()) * spread).view_as(weight)


def scale_outputs(layer: Layer, factor: Tensor) -> None:
    """Multiply output channel c of the layer by factor[c], in new parameters."""
    shape = (-1, *[1] * (layer.weight.dim() - 1))
    set_weight(layer, layer.weight * factor.view(shape))
    if layer.bias is not None:
        set_bias(layer, layer.bias * factor)


def set_weight(layer: nn.Module, value: Tensor) -> None:
    """A new parameter: a tied weight elsewhere keeps its own values."""
    old = cast(Tensor, layer.weight)
    layer.weight = nn.Parameter(value.detach().to(old.dtype), old.requires_grad)


def set_bias(layer: Layer, value: Tensor) -> None:
    layer.bias = nn.Parameter(value.detach().to(layer.weight.dtype), layer.weight.requires_grad)
