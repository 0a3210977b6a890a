"""One part of a data set: images, with labels or without."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class ImageStore(Protocol):
    """Images that are decoded when asked for; a uint8 tensor [N, C, H, W] is the simple case."""

    @property
    def shape(self) -> torch.Size:
        """[N, C, H, W]."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor) -> Tensor:
        """Images of an int64 index [B] as uint8 [B, C, H, W]."""

    def select(self, index: Tensor) -> ImageStore:
        """The store of the images of `index` only, nothing decoded."""

    def digest(self) -> str:
        """A hash that other images would change."""


@dataclass(frozen=True, eq=False)
class Split:
    """Images uint8 [N, C, H, W] (or a store of them) and labels, or None if unlabelled.

    Labels are int64 [N] where they are classes, and float [N, K] where they are several labels at once or values.

    Inputs that are `normalised` already are taken as they are: floats or int64 tokens of any shape [N, ...]. Raises
    ValueError if a shape or dtype is another, or if the lengths differ.
    """

    images: Tensor | ImageStore
    labels: Tensor | None = None
    normalised: bool = False

    def __post_init__(self) -> None:
        if not self.normalised:
            if len(self.images.shape) != 4:
                raise ValueError(f"images must be [N, C, H, W], not {tuple(self.images.shape)}")
            if isinstance(self.images, Tensor) and self.images.dtype != torch.uint8:
                raise ValueError(f"images must be uint8, not {self.images.dtype}")
        if self.labels is None:
            return
        count = len(self.images)
        classes = self.labels.dtype == torch.int64 and self.labels.shape == (count,)
        values = self.labels.is_floating_point() and self.labels.ndim == 2
        if not classes and not (values and len(self.labels) == count):
            raise ValueError(
                f"labels must be int64 [{count}] or float [{count}, K], "
                f"not {self.labels.dtype} {list(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def digest(self) -> str:
        """Hash of the labels and of the pixels, or of what the store says of its files."""
        total = hashlib.blake2b(digest_size=8)
        if isinstance(self.images, Tensor):
            total.update(f"{list(self.images.shape)}".encode())
            total.update(self.images.cpu().contiguous().numpy().data)
        else:
            total.update(self.images.digest().encode())
        if self.labels is not None:
            total.update(self.labels.cpu().contiguous().numpy().data)
        return total.hexdigest()

    def take(self, index: Tensor) -> Split:
        """The images (and labels) of an int64 index [M], in its order."""
        images: Tensor | ImageStore
        if isinstance(self.images, Tensor):
            images = self.images[index]
        else:
            images = self.images.select(index)
        labels = None if self.labels is None else self.labels[index]
        return Split(images, labels, self.normalised)

    def head(self, count: int) -> Split:
        """The first `count` images."""
        return self.take(torch.arange(min(count, len(self))))

    def unlabelled(self) -> Split:
        """The same images without labels: what a teacher labels by itself."""
        return Split(self.images, normalised=self.normalised)


def stratified_parts(labels: Tensor, fractions: tuple[float, ...], seed: int) -> list[Tensor]:
    """Cut the positions 0..N-1 into parts that all have the class shares of `labels` [N].

    Each part gets its fraction of every class, rounded; the last one gets the rest. Positions come
    back sorted. The same seed gives the same parts. Raises ValueError unless fractions sum to 1.
    """
    if abs(sum(fractions) - 1) > 1e-6 or min(fractions) < 0:
        raise ValueError(f"fractions must be >= 0 and sum to 1, not {fractions}")
    generator = torch.Generator().manual_seed(seed)
    parts: list[list[Tensor]] = [[] for _ in fractions]
    for label in labels.unique().tolist():
        members = torch.nonzero(labels == label).flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        bounds = (torch.tensor(fractions, dtype=torch.float64).cumsum(0) * len(members)).round()
        cuts = bounds[:-1].long().tolist()
        for part, piece in zip(parts, torch.tensor_split(members, cuts), strict=True):
            part.append(piece)
    return [torch.cat(part).sort().values for part in parts]


def hold_out(split: Split, fraction: float, seed: int = 0) -> tuple[Split, Split]:
    """(rest, held out): a part of a split set aside, stratified where there are classes.

    `fraction` in [0, 1); 0 gives an empty second split.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction to hold out must be in [0, 1), not {fraction}")
    labels = split.labels
    if labels is None or labels.is_floating_point():
        labels = torch.zeros(len(split), dtype=torch.int64)
    rest, held = stratified_parts(labels, (1 - fraction, fraction), seed)
    return split.take(rest), split.take(held)
