"""Which parameters a technique means: weights of layers, scales of batch norms, by layer name."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from qkernels.prune.attention import PROJECTIONS


def weights(
    model: nn.Module, layers: Collection[str] = (), *, biases: bool = False
) -> dict[str, nn.Parameter]:
    """Weights by full name of every convolution, Linear and projection of attention; with `biases` those too.

    The projections of an ``nn.MultiheadAttention`` are its ``in_proj_weight``, or ``q_proj_weight`` and its like.
    `layers` narrows it to these layers, or to the layers inside these modules. Batch norms have no part in it.
    Raises ValueError for an unknown layer, with the nearest known ones.
    """
    kinds = ("weight", "in_proj_weight", *(f"{layer}_weight" for layer in PROJECTIONS))
    if biases:
        kinds += ("bias", "in_proj_bias")
    return _parameters(model, (_ConvNd, nn.Linear, nn.MultiheadAttention), kinds, layers)


def gammas(model: nn.Module, layers: Collection[str] = ()) -> dict[str, nn.Parameter]:
    """Scales (gamma) by full name of every batch norm, or of those in `layers`; errors as `weights`."""
    return _parameters(model, (_BatchNorm,), ("weight",), layers)


def within(names: Iterable[str], layers: Collection[str]) -> set[str]:
    """Those of `names` that are in `layers`, or inside a module of that name.

    Raises ValueError for an entry of `layers` that means none of the names, with the nearest ones.
    """
    names = list(names)
    chosen: set[str] = set()
    for layer in layers:
        found = {name for name in names if name == layer or name.startswith(f"{layer}.")}
        if not found:
            near = difflib.get_close_matches(layer, names, n=3, cutoff=0.4) or names[:3]
            raise ValueError(f"no layer {layer!r} to prune; the nearest: {', '.join(near)}")
        chosen |= found
    return chosen


def _parameters(
    model: nn.Module,
    types: tuple[type[nn.Module], ...],
    kinds: tuple[str, ...],
    layers: Collection[str],
) -> dict[str, nn.Parameter]:
    owners = {name: module for name, module in model.named_modules() if isinstance(module, types)}
    chosen = within(owners, layers) if layers else owners.keys()
    found = {
        f"{name}.{kind}".lstrip("."): owners[name]._parameters.get(kind)
        for name in owners
        if name in chosen
        for kind in kinds
    }
    return {name: parameter for name, parameter in found.items() if parameter is not None}
