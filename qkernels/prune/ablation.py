"""Channels that the model can do without, found by doing without them: random dropout as a measure of importance."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from qkernels.prune.scores import Labelled, Loss, Scores
from qkernels.quantization.calibration import evaluating


def dropout(
    model: nn.Module,
    batches: Labelled,
    loss: Loss = cross_entropy,
    *,
    p: float = 0.1,
    rounds: int = 8,
    seed: int = 0,
) -> Scores:
    """How much larger the loss is with an input channel dropped than with it kept, by layer name, at least 0.

    Every batch runs `rounds` times, each time with a random share `p` of all layers' input channels set to 0; a
    channel's score is the difference of the mean losses. Scores of channels that matter little are mostly noise: more
    rounds, less of it. Seeded; `model` is not changed.

    Raises ValueError for p outside (0, 1) and if there are no batches.
    """
    if not 0 < p < 1:
        raise ValueError(f"p={p} must be in (0, 1)")
    generator = torch.Generator().manual_seed(seed)
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    kept: dict[str, Tensor] = {}
    sums: dict[str, Tensor] = {}  # by layer [2, channels]: losses with the channel dropped and kept
    counts: dict[str, Tensor] = {}

    def drop(name: str) -> Callable[..., Any]:
        def hook(layer: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
            x = args[0]
            kept[name] = torch.rand(x.shape[1], generator=generator) >= p
            return x * kept[name].to(x).view(1, -1, *[1] * (x.dim() - 2))

        return hook

    with ExitStack() as stack:
        for name in layers:
            handle = model.get_submodule(name).register_forward_pre_hook(drop(name))
            stack.callback(handle.remove)
        stack.enter_context(evaluating(model))
        for inputs, labels in batches:
            for _ in range(rounds):
                value = float(loss(model(inputs), labels))
                for name, mask in kept.items():
                    sides = torch.stack([~mask, mask]).double()
                    sums[name] = sums.get(name, 0) + sides * value
                    counts[name] = counts.get(name, 0) + sides
    if not sums:
        raise ValueError("no batches to measure losses on")
    means = {name: sums[name] / counts[name].clamp(min=1) for name in sums}
    return {name: (mean[0] - mean[1]).clamp(min=0).float() for name, mean in means.items()}
