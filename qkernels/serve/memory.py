"""Memory that nobody uses any more, given back to the system."""

from __future__ import annotations

import ctypes
import gc

_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc


def give_back() -> None:
    """What unloaded models, ended connections and TLS handshakes that never came to an end have left: milliseconds.

    The garbage collector alone would wait for thousands of objects, however large they are; and the C library keeps the
    memory that lies below something still in use.
    """
    gc.collect(1)
    if _trim is not None:
        _trim(0)
