"""Clip the few weights that stretch a whole layer's scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qkernels.modules.copying import copied
from qkernels.quantization.fold import fold_batch_norm_, own_weight
from qkernels.recovery.chains import set_weight
from qkernels.reports import hang

_SHRINK = [1 - 0.01 * i for i in range(80)]


@dataclass
class Clipped:
    """The report of `clip_outliers`.

    Attributes:
        shares: layer -> the share of its weights that were clipped; layers with any.
    """

    shares: dict[str, float]

    def __str__(self) -> str:
        lines = [f"weights of {len(self.shares)} layers clipped"]
        return "\n".join(lines + [f"{name}: {share:.3%}" for name, share in self.shares.items()])


@torch.no_grad()
def clip_outliers(
    model: nn.Module, example_inputs: Any = None, *, per_channel: bool = True
) -> nn.Module:
    """A float model with weights clamped where their int8 form then errs least.

    Batch norms are folded first. The clip of each channel (or tensor) has the smallest squared difference between
    the weight as it was and its int8 values, among 80 shares of its largest value; no clip wins a tie. At 8 bits this
    helps tensors with one scale and strong outliers.

    Args:
        model: float; not changed.
        example_inputs: what the model is called with, to fold its batch norms, as for `fold_batch_norm_`.
        per_channel: as the weights will be quantized.

    Returns:
        The clipped model, with `Clipped` as its report.
    """
    model = copied(model)[0].eval()
    fold_batch_norm_(model, example_inputs)
    done = {}
    for name, module in model.named_modules():
        if type(module) not in (nn.Conv2d, nn.Linear) or not own_weight(module):
            continue
        weight = module.weight.float()
        rows = weight.flatten(1) if per_channel else weight.reshape(1, -1)
        clip = _best_clip(rows)
        clipped = (rows.abs() > clip).float().mean().item()
        if clipped:
            set_weight(module, rows.clamp(-clip, clip).view_as(weight))
            done[name] = clipped
    return hang(model, Clipped(done))


def _best_clip(rows: Tensor) -> Tensor:
    """[rows, 1]: the clip of smallest squared error of each row."""
    peak = rows.abs().amax(1, keepdim=True).clamp(min=1e-30)
    best, least = peak, torch.full_like(peak, torch.inf)
    for share in _SHRINK:
        scale = peak * share / 127
        back = (rows / scale).round().clamp(-127, 127) * scale
        error = (back - rows).square().sum(1, keepdim=True)
        best, least = torch.where(error < least, peak * share, best), torch.minimum(error, least)
    return best
