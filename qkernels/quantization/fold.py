"""Fold batch norms into the convolutions and linear layers before them.

A batch norm in eval mode is `y * factor + shift` per channel, which the layer before it can do
for free: `weight * factor[:, None]` and `(bias - mean) * factor + beta`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from qkernels.modules.calling import Call, example_call
from qkernels.modules.capture import Capture, captures, guessed_call
from qkernels.modules.eval_mode import answering
from qkernels.modules.outputs import output_error, output_tensors, rounding
from qkernels.modules.swap import ModuleSwap, has_hooks, has_own_forward
from qkernels.nn.registry import spec_of
from qkernels.reports import Model, hang

Layer = Any  # a layer with weight and bias that has a LayerSpec

_BATCH_NORM = torch.ops.aten.batch_norm.default
_VIEWS = (
    torch.ops.aten.flatten.using_ints, torch.ops.aten.view.default, torch.ops.aten.reshape.default,
)  # fmt: skip
_SHAPED_LIKE = (torch.ops.aten.reshape_as.default, torch.ops.aten.view_as.default)


class FoldedBatchNorm(nn.Identity):
    """Stands where a batch norm was; the layer named `into` now does its work."""

    into: str

    def __init__(self, into: str) -> None:
        super().__init__()
        self.into = into

    def extra_repr(self) -> str:
        return f"into={self.into!r}"


class FoldedBatchNorm1d(FoldedBatchNorm):
    """The same after a linear layer: in [N, C, L] the batch norm's channels are not the layer's."""

    def forward(self, input: Tensor) -> Tensor:
        torch._assert(  # unlike `if`, a trace can hold it
            input.dim() == 2,
            f"the batch norm after {self.into!r} was folded for [N, C] activations, which these "
            "are not: quantize with fold_batch_norm=False",
        )
        return input


class FoldedNormAct(nn.Module):
    """What is left of a batch norm that called other modules behind its norm, an activation say: those modules.

    They keep their names in it, and are called in the order of `rest`.
    """

    def __init__(self, into: str, rest: dict[str, nn.Module]) -> None:
        super().__init__()
        self.into, self.rest = into, list(rest)
        for name, module in rest.items():
            self.add_module(name, module)

    def forward(self, input: Tensor) -> Tensor:
        for name in self.rest:
            input = self._modules[name](input)  # type: ignore[misc]
        return input

    def extra_repr(self) -> str:
        return f"into={self.into!r}"


FOLDED = (FoldedBatchNorm, FoldedBatchNorm1d, FoldedNormAct)


@dataclass
class Folds:
    """The report of `fold_batch_norm_`.

    Attributes:
        pairs: (layer, batch norm) names, folded.
        notes: sentences about what could not be seen or folded.
    """

    pairs: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Pair:
    """A layer and the batch norm that alone reads it; `rest` are the children that the norm calls after."""

    layer: str
    norm: str
    rest: tuple[str, ...]


@dataclass(frozen=True)
class _Unpaired:
    """A batch norm that stays, and why."""

    norm: str
    why: str


def fold_batch_norm_(
    model: Model, example_inputs: Any = None, *, only: Collection[str] | None = None
) -> Model:
    """Fold every batch norm that alone reads a convolution or linear layer, in place.

    What reads what is seen in the graph of one call (`qkernels.modules.capture`), and the model's answer to that call
    is the same before and after, or nothing is folded. A layer or batch norm that is used more than once, has hooks, or
    whose weights are read elsewhere too keeps its batch norm.

    Args:
        model: in eval mode; its parameters are replaced, never written in place.
        example_inputs: what the model is called with: a tensor, a tuple of positional or a dict of keyword arguments.
            None: an input is guessed from the first layer.
        only: full names of the layers that may change; None for all.

    Returns:
        `model`, with its `Folds` as the report.
    """
    folds = Folds()
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if norms and not _may_fold(model, norms, only):
        folds.notes.append("batch norms are not folded: none is as wide as a layer to convert")
    elif norms:
        call = guessed_call(model) if example_inputs is None else example_call(example_inputs)
        if call is None:
            folds.notes.append(
                "batch norms are not folded: no input is known, give example_inputs="
            )
        else:
            _fold(model, call, only, folds)
    return hang(model, folds)


def _may_fold(
    model: nn.Module, norms: Collection[_BatchNorm], only: Collection[str] | None
) -> bool:
    """Whether a batch norm has the width of a layer that may change; else no graph need be captured."""
    widths = {norm.num_features for norm in norms}
    layers = (m for name, m in model.named_modules() if only is None or name in only)
    return any(_channels(layer) in widths for layer in layers)


def _channels(layer: nn.Module) -> int | None:
    """How many output channels a layer has; None where it has no spec."""
    spec = spec_of(layer)
    weight = None if spec is None else getattr(layer, "weight", None)
    if spec is None or weight is None:
        return None
    groups = cast(int, getattr(layer, "groups", 1)) if spec.weight_axis else 1
    return int(weight.shape[spec.weight_axis]) * groups


def _fold(model: nn.Module, call: Call, only: Collection[str] | None, folds: Folds) -> None:
    registered = Counter(m for _, m in model.named_modules(remove_duplicate=False))
    swap, kept = ModuleSwap(model), []
    with answering(model):
        before = call.run(model)
    for pair in list(_pairs(model, call, folds.notes)):
        layer, norm = model.get_submodule(pair.layer), model.get_submodule(pair.norm)
        if only is not None and pair.layer not in only:
            continue
        if registered[layer] > 1 or registered[norm] > 1:
            folds.notes.append(f"{pair.norm} is not folded: it or {pair.layer} is shared")
            continue
        kept.append((layer, layer.weight, layer.bias, norm))
        fold_into(layer, cast(_BatchNorm, norm))
        swap.put(norm, placeholder(norm, pair.layer, isinstance(layer, nn.Linear), pair.rest))
        folds.pairs.append((pair.layer, pair.norm))
    swap.finish()
    with answering(model):
        error = output_error(before, call.run(model))
    if error > rounding({x.dtype for _, x in output_tensors(before)}):
        for layer, weight, bias, _ in kept:
            layer.weight, layer.bias = weight, bias
        for _, norm_name in folds.pairs:
            norm = next(n for *_, n in kept if swap.name_of(n) == norm_name)
            swap.put(model.get_submodule(norm_name), norm)
        folds.notes.append(
            f"no batch norm is folded: the model's answer would change by {error:.2g} of its size"
        )
        folds.pairs.clear()
        swap.finish()
    if folds.pairs and (names := call.left_at_none(model)):
        folds.notes.append(
            f"batch norms are folded as in a call without {', '.join(names)}: where one of these acts between a layer "
            "and its norm, give it in example_inputs"
        )


def placeholder(norm: nn.Module, into: str, rows: bool, rest: Collection[str]) -> nn.Module:
    """What stands where `norm` was; `rows`: behind a linear layer; `rest`: its children that go on being called."""
    if rest:
        return FoldedNormAct(into, {name: norm.get_submodule(name) for name in rest})
    return (FoldedBatchNorm1d if rows else FoldedBatchNorm)(into)


def own_weight(layer: nn.Module) -> bool:
    """Whether `weight` is the layer's own parameter (and not recomputed by a hook)."""
    return layer._parameters.get("weight") is not None


@torch.no_grad()
def fold_into(layer: Layer, norm: _BatchNorm) -> None:
    """Replace weight and bias of `layer` by those of `norm(layer(x))`; computed in float64."""
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    factor = torch.rsqrt(variance.double() + norm.eps)
    shift = -mean.double() * factor
    if layer.bias is not None:
        shift += layer.bias.double() * factor
    if norm.affine:
        factor, shift = factor * norm.weight.double(), shift * norm.weight.double() + norm.bias
    weight = layer.weight
    scaled = scaled_outputs(layer, weight.double(), factor)
    layer.weight = nn.Parameter(scaled.to(weight.dtype), weight.requires_grad)
    layer.bias = nn.Parameter(shift.to(weight.dtype), weight.requires_grad)


def scaled_outputs(layer: nn.Module, weight: Tensor, factor: Tensor) -> Tensor:
    """The weight with output channel n multiplied by factor[n]; of a transposed convolution [C_in, N / groups, ...]."""
    spec = spec_of(layer)
    if spec is None or spec.weight_axis == 0:
        return weight * factor.view(-1, *[1] * (weight.dim() - 1))
    groups = cast(int, getattr(layer, "groups", 1))
    grouped = weight.view(groups, -1, *weight.shape[1:])
    return (grouped * factor.view(groups, 1, -1, *[1] * (weight.dim() - 2))).view_as(weight)


def _pairs(model: nn.Module, call: Call, notes: list[str]) -> Iterator[_Pair]:
    left: dict[str, dict[str, None]] = defaultdict(dict)  # why -> names in order
    for found in captures(model, call):
        if isinstance(found, str):
            notes.append(f"batch norms: {found}")
            continue
        for node in found.graph.nodes:
            pair = _pair(model, found, node)
            if isinstance(pair, _Unpaired):
                left[pair.why][pair.norm] = None
            elif pair is not None:
                yield pair
    for why, norms in left.items():
        names = list(norms)
        listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        notes.append(f"{listed} {'is' if len(names) == 1 else 'are'} not folded: {why}")


def _pair(model: nn.Module, found: Capture, node: fx.Node) -> _Pair | _Unpaired | None:
    """The pair that a batch norm's node makes with the layer before it; or why it makes none."""
    if node.target is not _BATCH_NORM:
        return None
    read, *tensors = node.args[:5]
    owners = {found.owner(t) for t in tensors if t is not None}
    names = {owner[0] for owner in owners if owner is not None}
    if not names:  # statistics of no module
        return None
    norm_name = min(names)
    norm = model.get_submodule(norm_name)
    if not isinstance(norm, _BatchNorm):
        return _Unpaired(norm_name, f"{type(norm).__name__} is no batch norm of torch")
    if None in owners or len(names) != 1 or not _read_once(tensors):
        return _Unpaired(norm_name, "its parameters are not used by it once and alone")
    source = _behind_views(cast(fx.Node, read))
    layer_name = _layer_of(model, found, source)
    if layer_name is None or (source is not read and not _on_last_axis(model, layer_name)):
        return _Unpaired(
            norm_name, "no layer stands before that hands its output to the norm alone"
        )
    layer = model.get_submodule(layer_name)
    if norm.running_mean is None:
        return _Unpaired(norm_name, "it has no running statistics")
    if found.scope(node)[-1:] != [norm_name] or not _is_own(norm, found, node):
        return _Unpaired(norm_name, "its statistics are used otherwise than by calling it")
    if any(has_hooks(m) or has_own_forward(m) for m in (layer, norm)):
        return _Unpaired(norm_name, f"it or {layer_name} has hooks")
    axes = cast(fx.Node, read).meta["val"].dim()
    if isinstance(layer, nn.Linear) and axes != 2:
        return _Unpaired(
            norm_name, f"behind the {axes - 1} axes of {layer_name} its channels are others"
        )
    rest = _called_behind(found, node, norm_name)
    if rest is None:
        return _Unpaired(norm_name, f"{type(norm).__name__} does more than its batch norm")
    return _Pair(layer_name, norm_name, rest)


def _is_own(norm: _BatchNorm, found: Capture, node: fx.Node) -> bool:
    """Whether the node is the batch norm that the module stands for, in eval mode."""
    keys = ("weight", "bias", "running_mean", "running_var")
    own = [None if getattr(norm, key) is None else key for key in keys]
    read = [None if t is None else cast(Any, found.owner(t))[1] for t in node.args[1:5]]
    return bool(read == own and node.args[5] is False and node.args[7] == norm.eps)


def _behind_views(node: fx.Node) -> fx.Node | None:
    """The node whose values are read, past views that keep rows of the last axis; None where others read them too."""
    while _readers(node) == 1:
        source = node.args[0] if node.args else None
        if node.target not in _VIEWS or not isinstance(source, fx.Node):
            return node
        if node.meta["val"].shape[-1] != source.meta["val"].shape[-1]:
            return node
        node = source
    return None


def _on_last_axis(model: nn.Module, layer: str) -> bool:
    """Whether the layer's channels are the last axis of its output, which such views keep."""
    spec = spec_of(model.get_submodule(layer))
    return spec is not None and spec.channel_axis == -1


def _readers(node: fx.Node) -> int:
    """How many nodes use the values, and not the shape alone."""
    return sum(user.target not in _SHAPED_LIKE or user.args[0] is node for user in node.users)


def _layer_of(model: nn.Module, found: Capture, node: fx.Node | None) -> str | None:
    """The layer whose product the node is, where it alone reads its tensors."""
    owner = None if node is None or len(node.args) < 2 else found.owner(node.args[1])
    if node is None or owner is None or owner[1] != "weight" or not _read_once(node.args[1:3]):
        return None
    layer = model.get_submodule(owner[0])
    called = found.scope(node)[-1:] == [owner[0]]
    return owner[0] if called and spec_of(layer) is not None and own_weight(layer) else None


def _read_once(values: Collection[Any]) -> bool:
    return all(len(v.users) == 1 for v in values if isinstance(v, fx.Node))


def _called_behind(found: Capture, node: fx.Node, norm: str) -> tuple[str, ...] | None:
    """The children that the norm's own forward calls, one behind the other, on what its batch norm gives."""
    rest: list[str] = []
    at = node
    for inner in found.graph.nodes:
        scope = found.scope(inner)
        if inner is node or norm not in scope:
            continue
        below = scope[scope.index(norm) + 1 :]
        readers = [n for n in inner.all_input_nodes if n not in found.tensors]
        if not below or readers != [at]:
            return None
        child = below[0].removeprefix(f"{norm}.")
        if child not in rest:
            rest.append(child)
        at = inner
    return tuple(rest)
