"""Normalised batches of a split: seeded by epoch, so that any epoch can be repeated exactly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qkernels.data.augment import Augment
from qkernels.data.split import Split

Batch = tuple[Tensor, Tensor | None]


def epoch_seed(seed: int, epoch: int, process: int = 0) -> int:
    """The seed of one epoch on one process: a pure function, so that resuming needs no random state."""
    # far apart in the lower 32 bits too, which are all that torch takes on a CPU
    return seed * 1_000_003 + epoch + process * 0x9E3779B1


@dataclass(frozen=True, eq=False)
class Batches:
    """Batches (images [B, C, H, W] = (pixel / 255 - mean) / std, labels int64 [B] or None).

    Inputs that are normalised already come as they are.

    Epoch e of seed s always gives the same batches. With several processes, `batch_size` counts the
    batch of all of them together: each takes every world_size-th image of it, cropped and flipped
    as one process would have done. `drop_last` leaves out a last batch that is not full.
    """

    split: Split
    batch_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shuffle: bool = False
    augment: Augment | None = None
    seed: int = 0
    drop_last: bool = False
    channels_last: bool = False
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {self.batch_size}")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} is not in 0..{self.world_size - 1}")

    def __len__(self) -> int:
        full, rest = divmod(len(self.split), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch; order and augmentation depend on (seed, epoch) alone."""
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, epoch))
        count = len(self.split)
        order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield self._batch(order[start : start + self.batch_size], generator)

    def head(self, count: int) -> Batches:
        """The same over the first `count` images only."""
        return replace(self, split=self.split.head(count))

    def _batch(self, index: Tensor, generator: torch.Generator) -> Batch:
        mine = slice(self.rank, None, self.world_size)
        images = self.split.images[index[mine]]
        if self.augment is not None and not self.split.normalised:
            choice = self.augment.draw(len(index), generator)
            images = self.augment.apply(images, choice[mine])
        labels = self.split.labels
        picked = None if labels is None else labels[index[mine]].to(self.device)
        images = images.to(self.device)
        if not self.split.normalised:
            return self._normalise(images), picked
        return images.to(self.dtype) if images.is_floating_point() else images, picked

    def _normalise(self, images: Tensor) -> Tensor:
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        shape = (1, -1, 1, 1)
        mean = torch.tensor(self.mean, dtype=torch.float32, device=images.device).view(shape)
        std = torch.tensor(self.std, dtype=torch.float32, device=images.device).view(shape)
        pixels = images.to(torch.float32, memory_format=layout)
        return pixels.sub_(255 * mean).div_(255 * std).to(self.dtype)
