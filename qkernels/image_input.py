"""How a picture becomes what a model takes, and what the model's outputs are called. Needs no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

KEY = "image_input"  # among the `extra` values of a checkpoint or program


@dataclass(frozen=True)
class ImageInput:
    """What a classifier was trained on, so that a file can say it: `extra=image_input.as_extra()`.

    Attributes:
        classes: names of the outputs, in order.
        size: (H, W) in pixels.
        mean, std: per channel (one: grey, three: RGB), of pixels scaled to [0, 1].
        border: share of each edge, below 0.5, that is cut off; the centre of the rest is resized.
    """

    classes: tuple[str, ...]
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    border: float = 0.0

    def as_extra(self) -> dict[str, Any]:
        return {KEY: asdict(self)}

    def pixels(self, picture: Image.Image) -> NDArray[np.uint8]:
        """A picture of 8 bits a channel as uint8 [C, H, W]."""
        mode = "L" if len(self.mean) == 1 else "RGB"
        if picture.mode != mode:
            picture = picture.convert(mode)
        fitted = np.asarray(fit(picture, self.size, self.border))
        return fitted.reshape(*self.size, len(self.mean)).transpose(2, 0, 1)

    def normalised(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(pixel / 255 - mean) / std of [..., C, H, W], to the bit as `qkernels.data.Batches`."""
        mean, std = (
            np.float32(255) * np.array(values, np.float32)[:, None, None]
            for values in (self.mean, self.std)
        )
        return (pixels.astype(np.float32) - mean) / std


def fit(picture: Image.Image, size: tuple[int, int], border: float) -> Image.Image:
    """The centre of a picture without its border, as large as fits the proportions of `size` (H, W), resized to it."""
    from PIL import Image, ImageOps

    return ImageOps.fit(picture, size[::-1], Image.Resampling.BICUBIC, border)
