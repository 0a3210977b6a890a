"""The mean over an image, the same bits everywhere."""

from __future__ import annotations

from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from qkernels import ops
from qkernels.modules.swap import ModuleSwap, has_own_forward

Model = TypeVar("Model", bound=nn.Module)


class MeanPool2d(nn.Module):
    """``nn.AdaptiveAvgPool2d(1)``: [N, C, H, W] -> [N, C, 1, 1], or without N; added pixel by pixel in float32.

    torch adds in an order that depends on the processor's vectors, so an int8 layer behind it would now and then
    differ by one from machine to machine. Where a gradient is wanted (QAT), torch adds all the same.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            return x.mean((-2, -1), keepdim=True)
        if x.dim() == 3:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        return ops.mean_pool2d(x.float()).to(x.dtype)


def fix_mean_order_(model: Model) -> Model:
    """Put `MeanPool2d` where ``nn.AdaptiveAvgPool2d(1)`` is, in place; returns the model."""
    swap = ModuleSwap(model)
    for pool in list(model.modules()):
        ones = type(pool) is nn.AdaptiveAvgPool2d and pool.output_size in (1, (1, 1))
        if ones and not has_own_forward(pool):
            swap.put(pool, MeanPool2d())
    return cast(Model, swap.finish())
