"""Deep copies of models, and the model inside of what torch wraps around it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from qkernels.swap import closed_over


def copied(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """A deep copy of ``model``, and notes on what a copy cannot hold apart.

    Tensors that a forward has computed and kept, as weight norm does, are copied by value; copy.deepcopy refuses them.
    A function in a module's attributes that closes over modules goes on using those of the original.
    """
    memo: dict[int, Any] = {}
    notes = []
    modules = {m: m for m in model.modules()}
    for name, module in model.named_modules():
        for key, value in module.__dict__.items():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
            notes += [
                f"{name or 'the model'}.{key} is a function that holds a {held} of the original model: the copy "
                "goes on using that one (quantize_ works on the model itself)"
                for held in closed_over(value, modules)
            ]
    return copy.deepcopy(model, memo), notes


def unwrapped(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """The model inside of DataParallel, DistributedDataParallel or torch.compile, and a note where there was one.

    Raises:
        ValueError: a ScriptModule, whose layers Python cannot replace; something that is no module.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"the model is a {type(model).__name__}: give an nn.Module")
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(
            "the model is a ScriptModule, whose layers cannot be replaced: give the nn.Module that was scripted"
        )
    inner = getattr(model, "_orig_mod", None)
    if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner = model.module
    if inner is None:
        return model, []
    found, notes = unwrapped(inner)
    return found, [f"{type(model).__name__} is taken off: wrap the result again", *notes]
