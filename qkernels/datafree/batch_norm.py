"""What batch norms remember of the data: the only trace of it in a trained network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from qkernels.modules.calling import Call
from qkernels.modules.watching import watching

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def has_statistics(model: nn.Module) -> bool:
    """Whether batch norms of a network remember anything of its data."""
    return bool(_layers(model))


def _layers(model: nn.Module) -> list[BatchNorm]:
    found = [m for m in model.modules() if isinstance(m, BatchNorm)]
    return [layer for layer in found if layer.running_mean is not None]


class BatchNormGap:
    """How far a batch is from the statistics that a network's batch norms remember.

    Sum over batch norms of ||mean - running_mean||_2 + ||var - running_var||_2, taken over the channels of their
    inputs: Yin et al. 2020 (1912.08795, DeepInversion), equation 4.

    Raises ValueError for a network without batch norm statistics.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = _layers(model)
        if not self.layers:
            raise ValueError(
                f"{type(model).__name__} has no batch norm with running statistics (were they folded?): "
                "take batch_norm=0"
            )

    @contextmanager
    def watching(self) -> Iterator[list[Tensor]]:
        """A list that every pass through the network inside fills with the scalar gap of each batch norm."""
        gaps: list[Tensor] = []
        layers = {str(i): layer for i, layer in enumerate(self.layers)}

        def add(name: str, call: Call) -> None:
            layer = layers[name]
            rows = call.first.float().movedim(1, -1).flatten(0, -2)
            variance, mean = torch.var_mean(rows, 0, correction=0)
            assert layer.running_mean is not None and layer.running_var is not None
            gaps.append((mean - layer.running_mean).norm() + (variance - layer.running_var).norm())

        with watching(layers, add):
            yield gaps
