"""What a model costs and how it answers: the figures of one row of a report."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from qkernels.data.progress import progress as progress_bar
from qkernels.eval_mode import eval_mode
from qkernels.quantization import fold_batch_norm_
from qkernels.timing import Timing, time_in_turns

LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}


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


@dataclass(frozen=True)
class Speed:
    """Milliseconds for one image, and images a second at `batch`.

    `layouts` are the memory layouts that were faster for one image and for the batch.
    """

    p50_ms: float
    p95_ms: float
    images_per_second: float
    batch: int
    layouts: tuple[str, str]


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


def count_macs(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-adds of a float model for one example of this shape, as [C, H, W]."""
    counter = FlopCounterMode(display=False)
    with counter, eval_mode(model), torch.no_grad():
        model(torch.zeros(1, *shape))
    return counter.get_total_flops() // 2


def count_parameters(model: nn.Module) -> int:
    """Learned numbers of a float model."""
    return sum(parameter.numel() for parameter in model.parameters())


def measure_speed(
    models: Mapping[str, nn.Module],
    image_shape: tuple[int, int, int],
    *,
    batch: int = 64,
    seconds: float = 0.5,
    rounds: int = 8,
    progress: bool = False,
) -> dict[str, Speed]:
    """Time models by name in turns, on random images, with torch's current thread count.

    Float models have their batch norms folded first, as int8 ones have, so that int8 alone makes
    the difference. Every model is timed in both memory layouts; its faster one at batch 1 counts.
    """
    example = torch.randn(2, *image_shape)
    ready = {name: _folded(model, example) for name, model in models.items()}
    with progress_bar("timing", 2 * rounds, enabled=progress) as advance:

        def fastest(count: int) -> dict[str, tuple[str, Timing]]:
            images = torch.randn(count, *image_shape)
            return _fastest(ready, images, seconds=seconds, rounds=rounds, after_round=advance)

        single, bulk = fastest(1), fastest(batch)
    return {
        name: Speed(
            p50_ms=single[name][1].median * 1e3,
            p95_ms=single[name][1].percentile(95) * 1e3,
            images_per_second=batch / bulk[name][1].median,
            batch=batch,
            layouts=(single[name][0], bulk[name][0]),
        )
        for name in models
    }


def _folded(model: nn.Module, example: Tensor) -> nn.Module:
    return fold_batch_norm_(copy.deepcopy(model).eval(), example)


def _fastest(
    models: Mapping[str, nn.Module], images: Tensor, **how: Any
) -> dict[str, tuple[str, Timing]]:
    """(memory layout, times) of each model in its faster layout."""
    with torch.inference_mode():
        inputs = {name: images.contiguous(memory_format=kind) for name, kind in LAYOUTS.items()}
        placed = {
            (name, layout): copy.deepcopy(model).to(memory_format=kind)  # type: ignore[call-overload]
            for name, model in models.items()
            for layout, kind in LAYOUTS.items()
        }
        times = time_in_turns(
            {key: partial(model, inputs[key[1]]) for key, model in placed.items()}, **how
        )
    best = {name: min(LAYOUTS, key=lambda x, n=name: times[n, x].median) for name in models}  # type: ignore[misc]
    return {name: (layout, times[name, layout]) for name, layout in best.items()}
