"""The same model with other channel counts: what structured pruning leaves, as numbers that JSON can hold."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from qkernels.models.cifar_resnet import ZeroPadShortcut
from qkernels.plain import PlainAttention

Model = TypeVar("Model", bound=nn.Module)
Sizes = dict[str, dict[str, int]]  # module name -> attribute -> channels

_SIZES: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Conv2d: ("in_channels", "out_channels", "groups"),
    nn.ConvTranspose2d: ("in_channels", "out_channels", "groups"),
    nn.Linear: ("in_features", "out_features"),
    nn.Embedding: ("embedding_dim",),
    nn.GroupNorm: ("num_channels", "num_groups"),
    nn.LayerNorm: ("normalized_shape",),
    nn.BatchNorm1d: ("num_features",),
    nn.BatchNorm2d: ("num_features",),
    nn.PReLU: ("num_parameters",),
    ZeroPadShortcut: ("before", "in_channels", "after"),
    nn.Identity: (),
}


# What modules of attention call the number of their heads, and the width of all heads together.
HEADS = ("num_heads", "num_attention_heads", "heads", "n_heads", "n_head", "nhead")
WIDTHS = ("attn_dim", "all_head_size", "inner_dim")
# What modules around embeddings call their width.
EMBEDDING_WIDTHS = ("hidden_dim", "hidden_size", "embed_dim", "embedding_dim", "d_model", "width")


def sizes(model: nn.Module) -> Sizes:
    """The channel counts of every module that `narrow_` knows; an Identity has none.

    Modules that are not torch's have the heads of attention, the width of embeddings, and that of parameters of their
    own (class tokens, positions) by what they call them.
    """
    found = {}
    for name, module in model.named_modules():
        attributes = _attributes(module)
        if attributes or type(module) in _SIZES:
            found[name] = {attribute: _size(module, attribute) for attribute in attributes}
    return found


def _attributes(module: nn.Module | None) -> tuple[str, ...]:
    """The attributes of a module that count its channels."""
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) != 1:
        return ()
    if type(module) in _SIZES:
        return _SIZES[type(module)]  # type: ignore[index]
    found = tuple(a for a in HEADS + WIDTHS if type(getattr(module, a, None)) is int)
    if not any(a in HEADS for a in found):
        found = ()
    if module is None or type(module).__module__.startswith("torch."):
        return found
    found += tuple(a for a in EMBEDDING_WIDTHS if type(vars(module).get(a)) is int)
    own = module._parameters.items()
    return found + tuple(a for a, p in own if p is not None and width_dim(p) is not None)


def width_dim(parameter: nn.Parameter) -> int | None:
    """The dimension of a parameter that its channels are: the last that is larger than 1."""
    if is_lazy(parameter):
        return None
    return max((dim for dim, size in enumerate(parameter.shape) if size > 1), default=None)


def _size(module: nn.Module, attribute: str) -> int:
    value = getattr(module, attribute)
    if isinstance(value, nn.Parameter):
        return value.shape[cast(int, width_dim(value))]
    return int(value[-1] if isinstance(value, tuple) else value)


def changes(before: Sizes, model: nn.Module) -> Sizes:
    """The sizes of `model` that are not those of before: what `narrow_` needs to make it from the first model."""
    return {name: size for name, size in sizes(model).items() if size != before.get(name)}


def narrow_(model: Model, channels: Mapping[str, Mapping[str, int]]) -> Model:
    """Give modules other channel counts, in place, with fresh weights of torch's own initialization; returns the model.

    `channels`: some entries of `sizes`; where one is empty, an Identity takes the module's place. A `PlainAttention`
    takes that of an ``nn.MultiheadAttention`` whose projections they name. Whether the new counts fit each other shows
    at the first call.
    Raises ValueError for an unknown module (naming the nearest), an unknown attribute, or a count below its least.
    """
    for name, module in list(model.named_modules()):
        if type(module) is nn.MultiheadAttention and f"{name}.out_proj" in channels:
            model.set_submodule(name, PlainAttention.from_float(module))
    modules = dict(model.named_modules())
    for name, wanted in channels.items():
        known = _attributes(modules.get(name))
        if name not in modules or set(wanted) - set(known):
            near = difflib.get_close_matches(name, sizes(model), n=3, cutoff=0.4)
            raise ValueError(f"no module {name!r} with {', '.join(wanted)}; the nearest: {near}")
        for attribute, count in wanted.items():
            if count < (type(modules[name]) is not ZeroPadShortcut):
                raise ValueError(f"{name}.{attribute}={count} must be at least 1")
    for name, wanted in channels.items():
        for attribute, count in wanted.items():
            module = modules[name]
            if isinstance(getattr(module, attribute), nn.Parameter):
                _widen(module, attribute, count)
                continue
            setattr(module, attribute, (count,) if isinstance(module, nn.LayerNorm) else count)
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
    elif isinstance(module, nn.ConvTranspose2d):
        shape = (module.in_channels, module.out_channels // module.groups, *module.kernel_size)
        _new(module, "weight", shape)
        _new(module, "bias", (module.out_channels,))
    elif isinstance(module, nn.GroupNorm | nn.LayerNorm):
        shape = (_size(module, _SIZES[type(module)][0]),)
        _new(module, "weight", shape)
        _new(module, "bias", shape)
    elif isinstance(module, nn.Linear):
        _new(module, "weight", (module.out_features, module.in_features))
        _new(module, "bias", (module.out_features,))
    elif isinstance(module, nn.Embedding):
        _new(module, "weight", (module.num_embeddings, module.embedding_dim))
    elif isinstance(module, nn.PReLU):
        _new(module, "weight", (module.num_parameters,))
    elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        for key in ("weight", "bias", "running_mean", "running_var"):
            _new(module, key, (module.num_features,))
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()


def _widen(module: nn.Module, attribute: str, count: int) -> None:
    """A parameter of another width, which starts as embeddings do."""
    shape = list(getattr(module, attribute).shape)
    shape[cast(int, width_dim(getattr(module, attribute)))] = count
    _new(module, attribute, tuple(shape))
    nn.init.trunc_normal_(getattr(module, attribute), std=0.02)


def _new(module: nn.Module, key: str, shape: tuple[int, ...]) -> None:
    old = getattr(module, key)
    if isinstance(old, nn.Parameter):
        setattr(module, key, nn.Parameter(old.new_empty(shape), old.requires_grad))
    elif isinstance(old, Tensor):
        setattr(module, key, torch.empty(shape, dtype=old.dtype, device=old.device))
