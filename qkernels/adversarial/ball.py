"""Which images an attacker may show."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qkernels.data.image_data import ImageData


@dataclass(frozen=True)
class Ball:
    """The L-infinity ball: no pixel moves by more than `eps`, and all stay in [0, 1].

    `eps` counts pixels scaled to 0..1, before the normalisation. Images are given and returned as batches come,
    (pixel - mean) / std per channel, float [N, C, H, W]. Working on that scale moves no image that is not attacked.

    Raises ValueError for an eps outside [0, 1], and for images that are no pixels under this mean and std.
    """

    eps: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not 0 <= self.eps <= 1:
            raise ValueError(
                f"eps={self.eps} is outside [0, 1], the range of a pixel: 8 of 255 levels are eps=8 / 255"
            )
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} channels, std has {len(self.std)}")

    @classmethod
    def of(cls, data: ImageData, eps: float) -> Ball:
        """The ball of one data set's images."""
        return cls(eps, data.mean, data.std)

    def scaled(self, images: Tensor, distance: float) -> Tensor:
        """A distance between pixels as one between normalised images, [1, C, 1, 1]."""
        return distance / self._channels(images, self.std)

    def bounds(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Lowest and highest value that each entry of `images` may take; same shape."""
        mean, std = self._channels(images, self.mean), self._channels(images, self.std)
        darkest, brightest = -mean / std, (1 - mean) / std
        slack = 1e-3 / std
        if ((images < darkest - slack) | (images > brightest + slack)).any():
            pixels = images * std + mean
            raise ValueError(
                f"the images are pixels from {pixels.min():.3g} to {pixels.max():.3g}, not in [0, 1]: "
                f"were they normalised with mean {self.mean} and std {self.std}?"
            )
        radius = self.scaled(images, self.eps)
        return torch.maximum(images - radius, darkest), torch.minimum(images + radius, brightest)

    def distance(self, images: Tensor, others: Tensor) -> Tensor:
        """Largest change of a pixel, 0..1, of each image [N]."""
        change = (others - images).abs() * self._channels(images, self.std)
        return change.flatten(1).amax(1)

    def _channels(self, images: Tensor, values: tuple[float, ...]) -> Tensor:
        if images.ndim != 4 or images.shape[1] != len(values):
            raise ValueError(
                f"images must be [N, {len(values)}, H, W] as mean and std say, not {list(images.shape)}"
            )
        return images.new_tensor(values).view(1, -1, 1, 1)
