"""Deep copies of models, and the model inside of what torch wraps around it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from qkernels.modules.references import Replacement
from qkernels.utils.errors import first_line


def copied(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """A deep copy of ``model``, and notes on what a copy cannot hold apart.

    Tensors that a forward has computed and kept, as weight norm does, are copied by value; copy.deepcopy refuses them.
    A function in a module's attributes that closes over modules goes on using those of the original.

    Raises:
        ValueError: a model that holds what cannot be copied, such as a lock or an open file.
    """
    same = {module: module for module in model.modules()}
    notes = [
        f"a function in {where} holds a {held} of the original model: the copy goes on using that one (quantize_ works "
        "on the model itself)"
        for where, held in Replacement(model, same).functions
    ]
    try:
        with _ByValue():
            return copy.deepcopy(model), notes
    except Exception as error:  # whatever an object in it says to being copied
        raise ValueError(
            f"{type(model).__name__} cannot be copied ({first_line(error)}): quantize_ converts the model itself"
        ) from error


class _ByValue(TorchFunctionMode):
    """Inside, copy.deepcopy takes the value of a tensor that has a history."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            return memo.setdefault(id(tensor), tensor.detach().clone())
        return func(*args, **(kwargs or {}))


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
