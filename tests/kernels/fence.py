"""Arrays that end right before memory nobody may touch: reading one byte too far is a crash, not a guess."""

import ctypes
import mmap

import numpy as np

_libc = ctypes.CDLL(None, use_errno=True)


def fenced(a: np.ndarray) -> np.ndarray:
    """A contiguous copy of `a`, its last byte the last before a forbidden page."""
    page = mmap.PAGESIZE
    span = max(-(-a.nbytes // page), 1) * page
    memory = mmap.mmap(-1, span + page)
    fence = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + span
    if _libc.mprotect(ctypes.c_void_p(fence), page, mmap.PROT_READ & 0):
        raise OSError(ctypes.get_errno(), "mprotect")
    copy = np.frombuffer(memory, a.dtype, a.size, span - a.nbytes).reshape(a.shape)
    copy[...] = a
    return copy


def guarded(shape: tuple[int, ...], dtype: np.dtype, shift: int) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of a buffer full of 0x5a, and a contiguous array in it that starts `shift` bytes off alignment."""
    count = int(np.prod(shape))
    buffer = np.full(count * np.dtype(dtype).itemsize + 192, 0x5A, np.uint8)
    first = 64 + shift
    inside = buffer[first : first + count * np.dtype(dtype).itemsize].view(dtype).reshape(shape)
    return buffer, inside
