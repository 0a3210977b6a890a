"""What a model costs in products and in numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from qkernels.modules.eval_mode import eval_mode


def count_macs(model: nn.Module, example: tuple[int, ...] | Tensor) -> int:
    """Multiply-adds of a float model for one example: one as a batch, or the shape of floats, as [C, H, W]."""
    x = example if isinstance(example, Tensor) else torch.zeros(1, *example)
    counter = FlopCounterMode(display=False)
    fused = torch.backends.mha.get_fastpath_enabled()  # encoder layers in one operator, uncounted
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with counter, eval_mode(model), torch.no_grad():
            model(x)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.get_total_flops() // 2


def count_parameters(model: nn.Module) -> int:
    """Learned numbers of a float model."""
    return sum(parameter.numel() for parameter in model.parameters())
