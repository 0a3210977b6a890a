"""Pictures as the bytes that a client sends."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], np.uint8)
ORIENTATION = 0x0112
# EXIF 2.3, tag Orientation: how an upright picture is stored so that the number puts it right.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def quadrants(side: int = 32) -> Image.Image:
    """Red, green; blue, yellow."""
    return Image.fromarray(COLOURS.repeat(side // 2, 0).repeat(side // 2, 1))


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def rotated(picture: Image.Image, orientation: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = STORED[orientation]
    turned = picture if stored is None else picture.transpose(stored)
    return encoded(turned, kind, exif=exif, quality=95)


def frames(kind: str) -> bytes:
    other = quadrants().transpose(Image.Transpose.ROTATE_180)
    return encoded(quadrants(), kind, save_all=True, append_images=[other], duration=50)


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG with a header of one's choice."""
    head = struct.pack(">2I5B", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def webp(width: int, height: int) -> bytes:
    """The header of a lossless WebP, and nothing behind it that such a size needs."""
    bits = (width - 1) | (height - 1) << 14
    data = b"\x2f" + struct.pack("<I", bits) + bytes(27)
    body = b"WEBPVP8L" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body
