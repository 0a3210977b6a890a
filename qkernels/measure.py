"""How answers change from one model to another, and what a model costs in products and numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from qkernels.eval_mode import eval_mode


@dataclass(frozen=True)
class PairedChange:
    """How answers changed from one model to another on the same images.

    `gain` is the difference of the accuracies (-1..1) with its 95 % interval; `changed` counts the
    images on which the two models name different classes.
    """

    gain: float
    interval: tuple[float, float]
    changed: int
    count: int

    @property
    def certain(self) -> bool:
        """Whether the interval leaves out 0."""
        low, high = self.interval
        return low > 0 or high < 0


def paired_change(before: Tensor, after: Tensor, labels: Tensor) -> PairedChange:
    """Compare two models' logits [N, K] with labels int64 [N].

    The interval is that of Agresti and Min 2005 for matched pairs: Wald's after adding half an
    image to each of the four outcomes, sound when few answers changed.
    """
    right_before, right_after = before.argmax(1) == labels, after.argmax(1) == labels
    won = int((right_after & ~right_before).sum())
    lost = int((right_before & ~right_after).sum())
    count = len(labels)
    centre = (won - lost) / (count + 2)
    variance = (won + lost + 1) / (count + 2) - centre**2
    half = 1.96 * math.sqrt(variance / (count + 2))
    changed = int((before.argmax(1) != after.argmax(1)).sum())
    gain = (won - lost) / count
    return PairedChange(gain, (centre - half, centre + half), changed, count)


def count_macs(model: nn.Module, example: tuple[int, ...] | Tensor) -> int:
    """Multiply-adds of a float model for one example: one as a batch, or the shape of floats, as [C, H, W]."""
    x = example if isinstance(example, Tensor) else torch.zeros(1, *example)
    counter = FlopCounterMode(display=False)
    fused = (
        torch.backends.mha.get_fastpath_enabled()
    )  # an encoder layer in one operator, of no known products
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
