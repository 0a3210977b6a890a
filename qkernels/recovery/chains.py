"""Which layers follow each other so that a channel's scale can move from one to the next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from qkernels.nn import ClampedReLU
from qkernels.quantization.fold import (
    FoldedBatchNorm,
    FoldedBatchNorm1d,
    Layer,
    LayerTracer,
    has_hooks,
    own_weight,
)

# What may lie between two layers, f(s * x) = s * f(x) for every s > 0 and channel. "pointwise" minds no axis;
# "ceiling" has a bound for each entry of dimension 1; "image" keeps [N, C, H, W]; "rows" makes [N, C * ...] of it.
Kind = Literal["pointwise", "ceiling", "image", "rows"]
_POINTWISE = (
    nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity, FoldedBatchNorm, FoldedBatchNorm1d, nn.Dropout, nn.Dropout2d,
    torch.relu, F.relu, F.leaky_relu, F.dropout, "relu", "relu_",
)  # fmt: skip
_POOLS = (
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
    F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d,
)  # fmt: skip
_CEILINGS = (nn.ReLU6, ClampedReLU)
_SPATIAL = ((2, 3), [2, 3], (-2, -1), [-2, -1])


@dataclass(frozen=True)
class Chain:
    """`second` reads `first` through `between` alone; full names.

    `between` are names of the modules on the way; functions on it have none. `only_relu` says that nothing but
    ReLU-likes, identities and dropout lie between. Channels are dimension 1 behind a Conv2d of batched images, the
    last dimension behind a Linear.
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
        kinds: list[Kind] = []
        at = node
        while len(at.users) == 1:
            at = next(iter(at.users))
            if layer_at(at):
                first, second = str(node.target), str(at.target)
                if _same_channels(layer(model, first), layer(model, second), kinds):
                    only_relu = {*kinds} <= {"pointwise", "ceiling"}
                    yield Chain(prefix + first, prefix + second, tuple(between), only_relu)
                break
            kind = _kind(model, at, calls)
            if kind is None:
                break
            kinds.append(kind)
            if at.op == "call_module":
                between.append(prefix + str(at.target))


def _same_channels(first: Layer, second: Layer, kinds: list[Kind]) -> bool:
    """Whether the channels that `first` writes are those that `second` reads, also for every ceiling between."""
    if isinstance(first, nn.Linear):
        return isinstance(second, nn.Linear) and {*kinds} <= {"pointwise"}
    if isinstance(second, nn.Conv2d):
        return "rows" not in kinds
    return "rows" in kinds and "ceiling" not in kinds[kinds.index("rows") :]


def _kind(model: nn.Module, node: fx.Node, calls: Counter) -> Kind | None:
    """What the node is between two layers; None for what minds the scale of a channel."""
    what: object = node.target
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        if has_hooks(module):
            return None
        what = type(module)
    elif node.op not in ("call_function", "call_method"):
        return None
    if what in _POINTWISE:
        return "pointwise"
    if what in _POOLS:
        return "image"
    if what in _CEILINGS:  # it moves along: once only
        return "ceiling" if calls[node.target] == 1 else None
    if what in (nn.Flatten, torch.flatten, "flatten"):
        return "rows" if _flattens_channels(model, node) else None
    if what in (torch.mean, "mean") and _argument(node, 1, "dim", None) in _SPATIAL:
        return "image" if _argument(node, 2, "keepdim", False) else "rows"
    return None


def _flattens_channels(model: nn.Module, node: fx.Node) -> bool:
    """Whether [N, C, H, W] becomes [N, C * H * W]."""
    if node.op == "call_module":
        module = cast(nn.Flatten, model.get_submodule(str(node.target)))
        ends = (module.start_dim, module.end_dim)
    else:
        ends = (_argument(node, 1, "start_dim", 0), _argument(node, 2, "end_dim", -1))
    return ends in ((1, -1), (1, 3))


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


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
