"""Which layers follow each other so that a channel's scale can move from one to the next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor, fx, nn

from qkernels.modules.calling import Call, example_call
from qkernels.modules.capture import Capture, captures, guessed_call
from qkernels.modules.swap import has_hooks, has_own_forward
from qkernels.nn import ClampedReLU
from qkernels.nn.registry import spec_of
from qkernels.quantization.fold import Layer, own_weight, scaled_outputs

_ATEN = torch.ops.aten

# What may lie between two layers, f(s * x) = s * f(x) for every s > 0 and channel. "pointwise" minds no axis;
# "ceiling" has a bound for each entry of dimension 1; "image" keeps [N, C, H, W]; "rows" makes [N, C * ...] of it.
Kind = Literal["pointwise", "ceiling", "image", "rows"]
_POINTWISE = {
    _ATEN.relu.default, _ATEN.relu_.default, _ATEN.leaky_relu.default, _ATEN.leaky_relu_.default, _ATEN.prelu.default,
    _ATEN.dropout.default, _ATEN.dropout_.default, _ATEN.feature_dropout.default, _ATEN.clone.default,
    _ATEN.contiguous.default,
}  # fmt: skip
_POOLS = {
    _ATEN.max_pool2d.default, _ATEN.avg_pool2d.default, _ATEN.adaptive_avg_pool2d.default,
    _ATEN.adaptive_max_pool2d.default,
}  # fmt: skip
_RESHAPES = {_ATEN.flatten.using_ints, _ATEN.view.default, _ATEN.reshape.default}
_CEILINGS = (nn.ReLU6, ClampedReLU)
_CLAMPS = {  # one a call of a ceiling
    _ATEN.relu.default, _ATEN.relu_.default, _ATEN.relu6.default, _ATEN.relu6_.default, _ATEN.hardtanh.default,
    _ATEN.hardtanh_.default,
}  # fmt: skip


@dataclass(frozen=True)
class Chain:
    """`second` reads `first` through `between` alone; full names.

    `between` are names of the modules on the way; functions on it have none. `only_relu` says that nothing but
    ReLU-likes, identities and dropout lie between. Channels are dimension 1 behind a convolution of batched images, the
    last dimension behind a Linear.
    """

    first: str
    second: str
    between: tuple[str, ...] = field(default=())
    only_relu: bool = True


def find_chains(model: nn.Module, example_inputs: Any = None) -> list[Chain]:
    """Pairs of convolutions and Linear with nothing between them that minds the scale of a channel.

    They are seen in the graph of one call (`qkernels.modules.capture`): of `example_inputs`, or of an input that is
    guessed from the first layer. A layer that is shared, called twice, hooked or read past its call takes no part.
    """
    call = guessed_call(model) if example_inputs is None else example_call(example_inputs)
    if call is None:
        return []
    registered = Counter(id(m) for _, m in model.named_modules(remove_duplicate=False))
    return [
        chain
        for found in captured_parts(model, call)
        for chain in _chains_of(model, found)
        if all(registered[id(model.get_submodule(n))] == 1 for n in (chain.first, chain.second))
    ]


def captured_parts(model: nn.Module, call: Call) -> Iterator[Capture]:
    """The graph of the model, or of the largest parts of it that can be captured."""
    return (found for found in captures(model, call) if isinstance(found, Capture))


def layer_at(model: nn.Module, found: Capture, node: fx.Node) -> str | None:
    """The name of the convolution or Linear whose call the node is, where only this call reads its tensors."""
    owner = found.owner(node.args[1]) if len(node.args) > 1 else None
    if owner is None or owner[1] != "weight" or found.scope(node)[-1:] != [owner[0]]:
        return None
    if any(len(t.users) != 1 for t in node.args[1:3] if isinstance(t, fx.Node)):
        return None
    module = model.get_submodule(owner[0])
    spec = spec_of(module)
    known = spec is not None and spec.input_axis is not None and own_weight(module)
    return owner[0] if known and not has_hooks(module) and not has_own_forward(module) else None


def _chains_of(model: nn.Module, found: Capture) -> Iterator[Chain]:
    clamps = Counter(found.scope(n)[-1] for n in found.graph.nodes if n.target in _CLAMPS)
    for node in found.graph.nodes:
        first = layer_at(model, found, node)
        if first is None:
            continue
        between: list[str] = []
        kinds: list[Kind] = []
        at = node
        while len(at.users) == 1:
            at = next(iter(at.users))
            second = layer_at(model, found, at)
            if second is not None:
                if _same_channels(layer(model, first), layer(model, second), kinds):
                    only_relu = {*kinds} <= {"pointwise", "ceiling"}
                    yield Chain(first, second, tuple(dict.fromkeys(between)), only_relu)
                break
            kind = _kind(model, found, at, clamps)
            if kind is None:
                break
            kinds.append(kind)
            between += found.scope(at)[-1:]


def _same_channels(first: Layer, second: Layer, kinds: list[Kind]) -> bool:
    """Whether the channels that `first` writes are those that `second` reads, also for every ceiling between."""
    if isinstance(first, nn.Linear):
        return isinstance(second, nn.Linear) and {*kinds} <= {"pointwise"}
    if not isinstance(second, nn.Linear):
        return "rows" not in kinds
    return "rows" in kinds and "ceiling" not in kinds[kinds.index("rows") :]


def _kind(model: nn.Module, found: Capture, node: fx.Node, clamps: Counter[str]) -> Kind | None:
    """What the node is between two layers; None for what minds the scale of a channel."""
    if node.op != "call_function":
        return None
    name = found.scope(node)[-1]
    module = model.get_submodule(name)
    if has_hooks(module):
        return None
    if isinstance(module, _CEILINGS):  # it moves along: once only
        return "ceiling" if clamps[name] == 1 else None
    if node.target in _POINTWISE:
        return "pointwise"
    if node.target in _POOLS:
        return "image"
    x = node.args[0].meta["val"] if node.args and isinstance(node.args[0], fx.Node) else None
    if node.target in _RESHAPES and x is not None:
        return "rows" if _flattens_channels(x.shape, node.meta["val"].shape) else None
    if node.target is _ATEN.mean.dim and x is not None and x.dim() == 4:
        axes = {axis % 4 for axis in cast(Any, node.args[1])}
        if axes == {2, 3}:
            return "image" if node.meta["val"].dim() == 4 else "rows"
    return None


def _flattens_channels(before: torch.Size, after: torch.Size) -> bool:
    """Whether [N, C, H, W] becomes [N, C * H * W]."""
    return len(before) == 4 and tuple(after) == (before[0], before[1] * before[2] * before[3])


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
    set_weight(layer, scaled_outputs(layer, layer.weight, factor))
    if layer.bias is not None:
        set_bias(layer, layer.bias * factor)


def set_weight(layer: nn.Module, value: Tensor) -> None:
    """A new parameter: a tied weight elsewhere keeps its own values."""
    old = cast(Tensor, layer.weight)
    layer.weight = nn.Parameter(value.detach().to(old.dtype), old.requires_grad)


def set_bias(layer: Layer, value: Tensor) -> None:
    layer.bias = nn.Parameter(value.detach().to(layer.weight.dtype), layer.weight.requires_grad)
