"""All that is known of the data when there is none."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qkernels.data import Augment, Batches, ImageData, Split


@dataclass(frozen=True)
class ImageKind:
    """The shape (C, H, W) of an image, and the mean and std, of pixels in 0..1, that the teacher was trained with."""

    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.mean) == len(self.std) == self.shape[0]:
            raise ValueError(
                f"images of {self.shape[0]} channels need as many means and stds, "
                f"not {len(self.mean)} and {len(self.std)}"
            )

    @classmethod
    def of(cls, data: ImageData) -> ImageKind:
        """The kind of a data set's images; none of them is looked at."""
        return cls(data.image_shape, data.mean, data.std)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Float pixels in 0..1 [N, C, H, W] as a model sees them."""
        return (pixels - self._channels(self.mean, pixels)) / self._channels(self.std, pixels)

    def to_uint8(self, images: Tensor) -> Tensor:
        """Normalised images as uint8 pixels, saturated: the inverse of `normalise` up to rounding."""
        pixels = images * self._channels(self.std, images) + self._channels(self.mean, images)
        return pixels.mul(255).round().clamp(0, 255).to(torch.uint8)

    def bounds(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised black and white, [1, C, 1, 1] each, like `images` in dtype and device."""
        return self.normalise(images.new_zeros(1, 1, 1, 1)), self.normalise(
            images.new_ones(1, 1, 1, 1)
        )

    def placeholders(self, count: int) -> Split:
        """`count` black images without labels in the memory of one.

        Where a generator makes the images, a data set only says how many make an epoch.
        """
        return Split(torch.zeros(1, *self.shape, dtype=torch.uint8).expand(count, -1, -1, -1))

    def data(self, train: Split, augment: Augment | None = None) -> ImageData:
        """A data set of made images alone, with nothing to validate or test on."""
        empty = self.placeholders(0)
        return ImageData("made", (), train, empty, empty, self.mean, self.std, augment)

    def batches(self, split: Split, batch_size: int = 64) -> Batches:
        """Normalised batches of made images, to calibrate with: `quantize(model, calibration=...)`."""
        return Batches(split, batch_size, self.mean, self.std)

    @staticmethod
    def _channels(values: tuple[float, ...], like: Tensor) -> Tensor:
        return like.new_tensor(values).view(1, -1, 1, 1)
