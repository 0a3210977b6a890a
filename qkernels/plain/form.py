"""What a plain form is, and how a module gives its weights to one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class PlainForm:
    """The answer for one module.

    Attributes:
        module: the same function with ordinary layers; None where the module stays as it is.
        sentence: what was done, or why nothing was; without a subject ("multi-head attention as four linear layers").
        spent_hooks: ids in the old module's ``_forward_pre_hooks`` that only recomputed a weight: `module` holds what
            they made, and fails with them. Take them out of the old module before its hooks are handed on.
    """

    module: nn.Module | None
    sentence: str
    spent_hooks: frozenset[int] = frozenset()


def shared_parameter(tensor: Tensor) -> nn.Parameter:
    """The parameter itself, or one that shares the memory of a view or of a recomputed weight."""
    if isinstance(tensor, nn.Parameter):
        return tensor
    return nn.Parameter(tensor.detach(), tensor.requires_grad and tensor.is_floating_point())


def fill(layer: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    """Give an empty layer these values without a copy."""
    layer.weight = shared_parameter(weight)
    layer.bias = None if bias is None else shared_parameter(bias)  # type: ignore[assignment]


def spend_weight_hooks(module: nn.Module, inputs: tuple[Any, ...]) -> frozenset[int]:
    """Run the hooks that recompute a weight before each forward, so that the module's weights are up to date.

    Weight norm, spectral norm and pruning of torch.nn.utils work so, and so do many hooks of users. A hook counts as
    one that recomputes where it changes no input and replaces a tensor attribute of the module that is no parameter.

    Returns:
        the ids of those hooks in ``module._forward_pre_hooks``.
    """
    if not module._forward_pre_hooks or not _tensor_attributes(module):
        return frozenset()
    spent = set()
    with torch.no_grad():
        for key, hook in module._forward_pre_hooks.items():
            before = _tensor_attributes(module)
            if key in module._forward_pre_hooks_with_kwargs or hook(module, inputs) is not None:
                continue
            after = _tensor_attributes(module)
            if any(after[name] is not before.get(name) for name in after):
                spent.add(key)
    return frozenset(spent)


def _tensor_attributes(module: nn.Module) -> dict[str, Tensor]:
    return {k: v for k, v in vars(module).items() if isinstance(v, Tensor)}
