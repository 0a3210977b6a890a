"""How a picture becomes what a model takes, and what the model's outputs are called. Needs no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

KEY = "image_input"  # among the `extra` values of a checkpoint or program


class PictureError(ValueError):
    """A sound picture that is none for a model; the message says why."""


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
        """An opened picture as uint8 [C, H, W], see `pixels_of`."""
        return pixels_of(picture, len(self.mean), self.size, self.border)

    def normalised(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(pixel / 255 - mean) / std of [..., C, H, W], to the bit as `qkernels.data.Batches`."""
        mean, std = (
            np.float32(255) * np.array(values, np.float32)[:, None, None]
            for values in (self.mean, self.std)
        )
        return (pixels.astype(np.float32) - mean) / std


def pixels_of(
    picture: Image.Image, channels: int, size: tuple[int, int], border: float
) -> NDArray[np.uint8]:
    """An opened picture as uint8 [channels, H, W], the one way for training and for serving.

    It is turned upright by its EXIF orientation, of 16 bits the upper 8 are taken, what is transparent becomes white,
    and the centre without its `border`, as large as fits the proportions of `size` (H, W), is resized to that size.
    One channel is grey, three are RGB.
    Raises PictureError for an animated picture and for pixels that have no 8-bit meaning; otherwise whatever Pillow's
    decoders raise.
    """
    from PIL import Image, ImageOps

    # A JPEG of several pictures (MPO) is what telephones write; the first of them is the photograph.
    if picture.format != "MPO" and getattr(picture, "is_animated", False):
        raise PictureError(f"the {picture.format} picture is animated; a still one is needed")
    mode = "L" if channels == 1 else "RGB"
    ImageOps.exif_transpose(picture, in_place=True)  # a copy of a large one would cost
    picture = _on_white(_of_8_bits(picture))
    if picture.mode != mode:
        picture = picture.convert(mode)
    fitted = ImageOps.fit(picture, size[::-1], Image.Resampling.BICUBIC, border)
    return np.asarray(fitted).reshape(*size, channels).transpose(2, 0, 1)


def _of_8_bits(picture: Image.Image) -> Image.Image:
    """Grey of 16 bits, which `convert` would clip, with the one level that a PNG may call transparent."""
    from PIL import Image

    if picture.mode == "F":
        raise PictureError("the picture has floating-point pixels, whose range no file says")
    if not picture.mode.startswith("I"):
        return picture
    levels = np.asarray(picture)
    if levels.size and not 0 <= levels.min() <= levels.max() < 1 << 16:
        raise PictureError(
            f"the picture has pixels from {levels.min()} to {levels.max()}, which 16 bits do not hold"
        )
    grey = (levels >> 8).astype(np.uint8)
    clear = picture.info.get("transparency")
    return Image.fromarray(
        grey if clear is None else np.where(levels == clear, 255, grey).astype(np.uint8)
    )


def _on_white(picture: Image.Image) -> Image.Image:
    from PIL import Image

    if not picture.has_transparency_data:
        return picture
    if picture.mode != "RGBA":
        picture = picture.convert("LA" if picture.mode == "La" else "RGBA").convert("RGBA")
    white = Image.new("RGB", picture.size, "white")
    white.paste(picture, mask=picture)
    return white
