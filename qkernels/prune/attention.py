"""Attention of torch as layers that can be cut.

``nn.MultiheadAttention`` insists on as many channels as it has heads times their size, and holds three projections in
one matrix. `PlainAttention` has the same function in four linear layers, and any number of heads.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from qkernels.modules.copying import copied
from qkernels.modules.swap import ModuleSwap
from qkernels.plain import is_plain, plain_form

PROJECTIONS = ("q_proj", "k_proj", "v_proj")


def is_joined(module: nn.Module) -> bool:
    """Whether a module is torch's own attention, with its projections in one matrix."""
    return isinstance(module, nn.MultiheadAttention) and not is_plain(module)


def split_attention_(model: nn.Module) -> tuple[nn.Module, dict[str, nn.Module]]:
    """Put plain attention in the place of torch's, in place; returns the model, and what stood there by name.

    Attention whose forward is its own, or whose weights hooks make anew before each call, stays.
    """
    swap, former = ModuleSwap(model), {}
    for name, module in list(model.named_modules()):
        form = plain_form(module) if name and is_joined(module) else None
        if form is not None and form.module is not None and not form.spent_hooks:
            swap.put(module, form.module)
            former[name] = module
    return swap.finish(), former


def with_split_attention(model: nn.Module) -> nn.Module:
    """The model itself, or a copy with plain attention where it has torch's: layers that hooks see."""
    if not any(map(is_joined, model.modules())):
        return model
    return split_attention_(copied(model)[0])[0]


def split_scores(scores: dict[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """The scores of attention of these names, by its own parameters, by those of its plain form as well."""
    found = dict(scores)
    for name in names:
        joined = scores.get(f"{name}.in_proj_weight")
        for at, layer in enumerate(PROJECTIONS):
            part = scores.get(f"{name}.{layer}_weight") if joined is None else joined.chunk(3)[at]
            if part is not None:
                found.setdefault(f"{name}.{layer}.weight", part)
    return found
