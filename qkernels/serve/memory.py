"""Memory that nobody uses any more, given back to the system."""

from __future__ import annotations

import ctypes
import gc
import time

_EVERY = 10.0  # seconds
_MOST = 1e-3  # of the time: what takes longer, as with torch's many objects, is done less often

_libc = ctypes.CDLL(None)
_trim = getattr(_libc, "malloc_trim", None)  # of glibc
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # <malloc.h>


def keep_large_blocks_apart() -> None:
    """Let blocks from 1 MB on lie by themselves, so that a model that goes leaves no hole between others.

    glibc would put them among the small ones once the first was freed. `GivesBack` alone gives the heap's end back.
    """
    if _trim is not None:
        _libc.mallopt(_M_MMAP_THRESHOLD, 1 << 20)
        _libc.mallopt(_M_TRIM_THRESHOLD, 64 << 20)


class GivesBack:
    """What unloaded models, ended connections and TLS handshakes that never came to an end have left.

    The garbage collector alone would wait for thousands of objects, however large they are, and Python keeps lists of
    free ones until it runs; the C library keeps the memory that lies below something still in use.
    """

    def __init__(self) -> None:
        self._next = 0.0

    def now_and_then(self) -> None:
        """Give back what is left, if it is time; whoever serves calls it about once a second."""
        began = time.monotonic()
        if began < self._next:
            return
        gc.collect()
        if _trim is not None:
            _trim(0)
        ended = time.monotonic()
        self._next = ended + max(_EVERY, (ended - began) / _MOST)
