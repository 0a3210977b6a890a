"""Pictures as inputs and classes as answers: what POST /classify takes and gives."""

from __future__ import annotations

import asyncio
import io
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import (
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from qkernels.image_input import ImageInput, PictureError
from qkernels.serve.batching import QueueFull
from qkernels.serve.errors import RequestError

MAX_PIXELS = 25_000_000
# Naming the plugins keeps Pillow from importing all it has.
_FORMATS = tuple(
    plugin.format
    for plugin in (
        PngImagePlugin.PngImageFile,
        JpegImagePlugin.JpegImageFile,
        WebPImagePlugin.WebPImageFile,
    )
)


class Decoder:
    """Decodes one picture at a time in a thread of its own, which bounds the memory; ``most`` may wait or run."""

    def __init__(self, most: int) -> None:
        self._thread = ThreadPoolExecutor(1, "decoder")
        self._most, self._now = most, 0

    async def __call__(self, body: bytes, image_input: ImageInput) -> NDArray[np.float32]:
        """What `decode` gives. Raises QueueFull at once."""
        if self._now >= self._most:
            raise QueueFull
        self._now += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, decode, body, image_input)
        finally:
            self._now -= 1

    def close(self) -> None:
        self._thread.shutdown(wait=False)


def decode(body: bytes, image_input: ImageInput) -> NDArray[np.float32]:
    """The input [1, C, H, W] for one picture. Raises RequestError that says why the bytes are not taken."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are not for a server's log
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        picture = _opened(body)
        try:
            pixels = image_input.pixels(picture)
        except PictureError as error:
            raise RequestError(400, str(error)) from error
        except Exception as error:  # decoders raise whatever damaged bytes lead them to
            raise _damaged(error) from error
    return image_input.normalised(pixels[None])


def best(image_input: ImageInput, logits: NDArray[np.float32], top_k: int) -> dict[str, Any]:
    """The most probable classes, by the softmax of the model's output [classes]."""
    shares = np.exp(logits.astype(np.float64) - logits.max())
    shares /= shares.sum()
    order = np.argsort(-shares, kind="stable")[:top_k]
    top = [{"label": image_input.classes[i], "probability": float(shares[i])} for i in order]
    return {**top[0], "top": top}


def _opened(body: bytes) -> Image.Image:
    """The picture with its size known and nothing of it decoded yet."""
    try:
        picture = Image.open(io.BytesIO(body), formats=_FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise _too_large() from None
    except UnidentifiedImageError as error:
        form = "; it is a form, which its content-type must say" if body[:2] == b"--" else ""
        raise RequestError(415, f"the body is no PNG, JPEG or WebP picture{form}") from error
    except Exception as error:
        raise _damaged(error) from error
    if picture.width * picture.height > MAX_PIXELS:
        raise _too_large()
    return picture


def _damaged(error: Exception) -> RequestError:
    return RequestError(400, f"the picture is damaged: {' '.join(str(error).split())}")


def _too_large() -> RequestError:
    return RequestError(413, f"the picture has more than {MAX_PIXELS:,} pixels")
