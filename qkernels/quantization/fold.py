"""Fold batch norms into the convolutions and linear layers before them.

A batch norm in eval mode is `y * factor + shift` per channel, which the layer before it can do
for free: `weight * factor[:, None]` and `(bias - mean) * factor + beta`.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import TypeVar, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from qkernels.reports import hang

Model = TypeVar("Model", bound=nn.Module)
Layer = nn.Linear | nn.Conv2d
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
_FOLDS_INTO: dict[type[nn.Module], tuple[type[nn.Module], ...]] = {
    nn.Conv2d: (nn.BatchNorm2d, nn.SyncBatchNorm),
    nn.Linear: (nn.BatchNorm1d, nn.SyncBatchNorm),
}


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
        torch._assert(  # unlike `if`, torch.fx can trace it
            input.dim() == 2,
            f"the batch norm after {self.into!r} was folded for [N, C] activations, which these "
            "are not: quantize with fold_batch_norm=False",
        )
        return input


@dataclass
class Folds:
    """The report of `fold_batch_norm_`.

    Attributes:
        pairs: (layer, batch norm) names, folded.
        notes: sentences about what could not be seen or folded.
    """

    pairs: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def fold_batch_norm_(model: Model, only: Collection[str] | None = None) -> Model:
    """Fold every batch norm that directly follows a Conv2d or Linear, in place.

    Pairs come from a torch.fx trace; a module that cannot be traced is searched child by child,
    and an nn.Sequential by the order of its children. A layer or batch norm that is used more
    than once, or has hooks, keeps its batch norm.

    Args:
        model: in eval mode; its parameters are replaced, never written in place.
        only: full names of the layers that may change; None for all.

    Returns:
        `model`, with its `Folds` as the report.
    """
    folds = Folds()
    registered = Counter(id(m) for _, m in model.named_modules(remove_duplicate=False))
    for layer_name, norm_name in list(_adjacent_pairs(model, "", folds.notes)):
        layer = cast(Layer, model.get_submodule(layer_name))
        norm = cast(_BatchNorm, model.get_submodule(norm_name))
        if only is not None and layer_name not in only:
            continue
        if registered[id(layer)] > 1 or registered[id(norm)] > 1:
            folds.notes.append(f"{norm_name} is not folded: it or {layer_name} is shared")
        elif norm.running_mean is None:
            folds.notes.append(f"{norm_name} is not folded: it has no running statistics")
        else:
            fold_into(layer, norm)
            kind = FoldedBatchNorm1d if isinstance(layer, nn.Linear) else FoldedBatchNorm
            replace_module(model, norm_name, kind(layer_name))
            folds.pairs.append((layer_name, norm_name))
    return hang(model, folds)


def replace_module(model: nn.Module, name: str, new: nn.Module) -> nn.Module:
    """Put `new` where `name` was; returns the model (`new` itself for the root, "")."""
    if name == "":
        return new
    parent, _, key = name.rpartition(".")
    model.get_submodule(parent)._modules[key] = new
    return model


def own_weight(layer: nn.Module) -> bool:
    """Whether `weight` is the layer's own parameter (and not recomputed by a hook)."""
    return layer._parameters.get("weight") is not None


def has_hooks(module: nn.Module) -> bool:
    """Whether anything of the user's runs before or after the module's forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


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
    scaled = weight.double() * factor.view(-1, *[1] * (weight.dim() - 1))
    layer.weight = nn.Parameter(scaled.to(weight.dtype), weight.requires_grad)
    layer.bias = nn.Parameter(shift.to(weight.dtype), weight.requires_grad)


def _adjacent_pairs(model: nn.Module, prefix: str, notes: list[str]) -> Iterator[tuple[str, str]]:
    """Names of (layer, batch norm) where the norm alone reads the layer's output."""
    if not any(isinstance(m, BATCH_NORMS) for m in model.modules()) or not any(model.children()):
        return
    try:
        graph = LayerTracer().trace(model)
    except Exception as error:  # whatever the model's own forward raises on symbolic inputs
        if not isinstance(model, nn.ModuleList | nn.ModuleDict):
            where = prefix.rstrip(".") or "the model"
            notes.append(
                f"batch norms: torch.fx could not trace {where} ({_first_line(error)}); searched "
                "its parts"
            )
        pairs = _pairs_of_sequential(model) if isinstance(model, nn.Sequential) else []
        yield from ((prefix + layer, prefix + norm) for layer, norm in pairs)
        for name, child in model.named_children():
            yield from _adjacent_pairs(child, f"{prefix}{name}.", notes)
    else:
        yield from ((prefix + layer, prefix + norm) for layer, norm in _pairs_of(model, graph))


class LayerTracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Modules without children stay whole: only their order matters here."""
        return not any(m.children()) or super().is_leaf_module(m, module_qualified_name)


def _pairs_of(model: nn.Module, graph: fx.Graph) -> Iterator[tuple[str, str]]:
    calls = Counter(id(model.get_submodule(n.target)) for n in graph.nodes if _is_call(n))
    read = {str(n.target).rpartition(".")[0] for n in graph.nodes if n.op == "get_attr"}
    for norm in graph.nodes:
        inputs = norm.all_input_nodes
        if not (_is_call(norm) and len(inputs) == 1 and _is_call(inputs[0])):
            continue
        layer = inputs[0]
        modules = [model.get_submodule(node.target) for node in (layer, norm)]
        once = all(calls[id(m)] == 1 for m in modules) and len(layer.users) == 1
        if once and _foldable(*modules) and not read & {layer.target, norm.target}:
            yield layer.target, norm.target


def _pairs_of_sequential(model: nn.Sequential) -> Iterator[tuple[str, str]]:
    children = list(model._modules.items())  # with repetitions: order is what counts
    for (layer_name, layer), (norm_name, norm) in itertools.pairwise(children):
        if layer and norm and _foldable(layer, norm):
            yield layer_name, norm_name


def _is_call(node: fx.Node) -> bool:
    return node.op == "call_module"


def _foldable(layer: nn.Module, norm: nn.Module) -> bool:
    hooked = has_hooks(layer) or has_hooks(norm)  # a hook may change what the norm reads
    return type(norm) in _FOLDS_INTO.get(type(layer), ()) and own_weight(layer) and not hooked


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
