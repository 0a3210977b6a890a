"""Bodies that are compressed, in and out: gzip and deflate."""

from __future__ import annotations

import asyncio
import re
import zlib

from qkernels.serve.errors import RequestError, bad

_EITHER, _GZIP, _ZLIB = 47, 31, 15  # of zlib's wbits
_TAKEN = ("gzip", "x-gzip", "deflate")
_ONE = re.compile(
    r"(?:^|,)\s*([\w-]+)\s*(?:;\s*q=\s*([\d.]+)\s*)?(?=,|$)"
)  # of Accept-Encoding, and its weight
_WORTH = 1 << 10  # bytes of an answer from which on it is compressed
_LONG = 64 << 10  # bytes from which on other requests are not kept waiting
_LEVEL = 1


def check_encoding(encoding: str) -> bool:
    """Whether a body of this Content-Encoding is compressed. Raises RequestError(415)."""
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return False
    if name not in _TAKEN:
        raise RequestError(
            415, f"content-encoding {encoding!r} is not taken", {"accept-encoding": "gzip, deflate"}
        )
    return True


async def expanded(body: bytes, limit: int) -> bytes:
    """What was compressed, of at most ``limit`` bytes, whatever it says of itself. Raises RequestError."""
    if len(body) < _LONG and limit < _LONG:
        return _expanded(body, limit)
    return await asyncio.to_thread(_expanded, body, limit)


def accepted(header: str) -> str | None:
    """The coding to answer with, of an Accept-Encoding; None: as it is."""
    weights = {name: weight or "1" for name, weight in _ONE.findall(header.lower())}
    taken = (name for name in ("gzip", "deflate") if weights.get(name, "0").strip("0."))
    return next(taken, None)


async def compressed(body: bytes, header: str) -> tuple[bytes, dict[str, str]]:
    """The answer for this Accept-Encoding, with its headers."""
    if not header or len(body) < _WORTH or (name := accepted(header)) is None:
        return body, {}
    wbits = _GZIP if name == "gzip" else _ZLIB
    packed = (
        _packed(body, wbits) if len(body) < _LONG else await asyncio.to_thread(_packed, body, wbits)
    )
    return packed, {"content-encoding": name, "vary": "Accept-Encoding"}


def _packed(body: bytes, wbits: int) -> bytes:
    parts = zlib.compressobj(_LEVEL, wbits=wbits)
    return parts.compress(body) + parts.flush()


def _expanded(body: bytes, limit: int) -> bytes:
    parts = zlib.decompressobj(_EITHER)
    try:
        data = parts.decompress(body, limit + 1)
    except zlib.error as error:
        raise bad(f"the body is not compressed as its content-encoding says: {error}") from error
    if len(data) > limit:
        raise RequestError(413, f"the body is larger than {limit} bytes")
    if not parts.eof or parts.unused_data:
        raise bad(
            "the body is not compressed as its content-encoding says: it is cut off, or goes on"
        )
    return data
