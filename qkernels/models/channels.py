"""The same model with other channel counts: what structured pruning leaves, as numbers that JSON can hold."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from qkernels.models.cifar_resnet import ZeroPadShortcut

Model = TypeVar("Model", bound=nn.Module)
Sizes = dict[str, dict[str, int]]  # module name -> attribute -> channels

_SIZES: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Conv2d: ("in_channels", "out_channels", "groups"),
    nn.Linear: ("in_features", "out_features"),
    nn.BatchNorm1d: ("num_features",),
    nn.BatchNorm2d: ("num_features",),
    nn.PReLU: ("num_parameters",),
    ZeroPadShortcut: ("before", "in_channels", "after"),
    nn.Identity: (),
}


def sizes(model: nn.Module) -> Sizes:
    """The channel counts of every module that `narrow_` knows; an Identity has none."""
    return {
        name: {attribute: int(getattr(module, attribute)) for attribute in _SIZES[type(module)]}
        for name, module in model.named_modules()
        if type(module) in _SIZES
    }


def changes(before: Sizes, model: nn.Module) -> Sizes:
    """The sizes of `model` that are not those of before: what `narrow_` needs to make it from the first model."""
    return {name: size for name, size in sizes(model).items() if size != before.get(name)}


def narrow_(model: Model, channels: Mapping[str, Mapping[str, int]]) -> Model:
    """Give modules other channel counts, in place, with fresh weights of torch's own initialization; returns the model.

    `channels`: some entries of `sizes`; where one is empty, an Identity takes the module's place. Whether the new
    counts fit each other shows at the first call.
    Raises ValueError for an unknown module (naming the nearest), an unknown attribute, or a count below its least.
    """
    modules = dict(model.named_modules())
    for name, wanted in channels.items():
        known = _SIZES.get(type(modules.get(name)), ())  # type: ignore[arg-type]
        if name not in modules or set(wanted) - set(known):
            near = difflib.get_close_matches(name, sizes(model), n=3, cutoff=0.4)
            raise ValueError(f"no module {name!r} with {', '.join(wanted)}; the nearest: {near}")
        for attribute, count in wanted.items():
            if count < (type(modules[name]) is not ZeroPadShortcut):
                raise ValueError(f"{name}.{attribute}={count} must be at least 1")
    for name, wanted in channels.items():
        for attribute, count in wanted.items():
            setattr(modules[name], attribute, count)
        if wanted:
            _remake(modules[name])
        else:
            model.set_submodule(name, nn.Identity())
    return model


def _remake(module: Any) -> None:
    """New tensors of the sizes that the module's attributes now say."""
    if isinstance(module, nn.Conv2d):
        shape = (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
        _new(module, "weight", shape)
        _new(module, "bias", shape[:1])
    elif isinstance(module, nn.Linear):
        _new(module, "weight", (module.out_features, module.in_features))
        _new(module, "bias", (module.out_features,))
    elif isinstance(module, nn.PReLU):
        _new(module, "weight", (module.num_parameters,))
    elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        for key in ("weight", "bias", "running_mean", "running_var"):
            _new(module, key, (module.num_features,))
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()


def _new(module: nn.Module, key: str, shape: tuple[int, ...]) -> None:
    old = getattr(module, key)
    if isinstance(old, nn.Parameter):
        setattr(module, key, nn.Parameter(old.new_empty(shape), old.requires_grad))
    elif isinstance(old, Tensor):
        setattr(module, key, torch.empty(shape, dtype=old.dtype, device=old.device))
