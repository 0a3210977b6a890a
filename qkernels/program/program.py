"""A program on NumPy arrays, without torch."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qkernels.program import kernel_core
from qkernels.program.format import checksum, read_extra, stored_checksum, with_extra
from qkernels.program.memory import at_line
from qkernels.program.profile import Profile
from qkernels.utils.files import replacing


class Program:
    """A chained model in one run of bytes, which may be a file mapped into memory.

    Loading copies nothing then, and processes that load the same file share its weights.

    ``program(x)`` takes arrays [N, C, H, W], [N, T, C] or [N, C], float32 or, of token ids and masks, int64. It returns
    one float32 array, or a list where there are several outputs. Any number of threads may call at once; each call
    works in memory of its own, kept for the next.
    """

    def __init__(self, data: NDArray[np.uint8], threads: int = 1) -> None:
        """``data``: from `qkernels.compile` or a file; copied where it does not begin at a cache line.

        Raises ValueError for bytes that are no whole program.
        """
        self.data, self.threads = at_line(data), threads
        self._program = kernel_core.Program(self.data)  # checks everything but the checksum
        if checksum(self.data) != stored_checksum(self.data):
            raise ValueError("the program's checksum is not that of its bytes: it was altered")

    @classmethod
    def load(cls, path: str | os.PathLike[str], threads: int = 1) -> Program:
        """Open a file that `save` has written; ``threads`` are those that one call may use.

        Raises ValueError for a file that is cut off, altered, from another version, or no program at all.
        """
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ValueError(f"{path}: the file is empty")
            data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        try:
            return cls(data, threads)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def save(self, path: str | os.PathLike[str], *, extra: Mapping[str, Any] | None = None) -> None:
        """Write a file that `load` opens.

        ``extra``: JSON-able values to keep in the file; None: those that the program has.
        """
        data = self.data if extra is None else with_extra(self.data, extra)
        with replacing(path) as aside:
            data.tofile(aside)

    def __call__(self, *inputs: NDArray[Any]) -> Any:
        outputs = self._program.run(list(map(_words, inputs)), self.threads)
        return outputs[0] if len(outputs) == 1 else outputs

    def profile(self, *inputs: NDArray[Any], runs: int = 20) -> Profile:
        """Each step's time, the median of ``runs`` calls after two unseen ones."""
        seconds: list[list[float]] = []
        for _ in range(runs + 2):
            seconds.append([])
            self._program.run(list(map(_words, inputs)), self.threads, True, seconds[-1])
        peak = kernel_core.peak_gops(threads=self.threads)
        return Profile.of(self.steps(*(x.shape for x in inputs)), seconds[2:], peak, self.threads)

    def steps(self, *sizes: tuple[int, ...]) -> list[dict[str, Any]]:
        """What a call with inputs of these sizes does: name, kind, x, y, multiply-adds and bytes of each step."""
        steps: list[dict[str, Any]] = self._program.steps([list(s) for s in sizes], self.threads)
        return steps

    def arena_bytes(self, *sizes: tuple[int, ...]) -> int:
        """Memory that one call with inputs of these sizes works in, beside weights, inputs and outputs."""
        return int(self._program.arena_bytes([list(s) for s in sizes], self.threads))

    @property
    def kept_bytes(self) -> int:
        """Memory of weights in another form, made when a call first takes them so and kept for all that follow.

        It is 0 before the first call, and always where ``QKERNELS_KEEP_WEIGHTS`` is 0.
        """
        return int(self._program.kept_bytes)

    @property
    def kept(self) -> NDArray[np.uint8] | None:
        """What is kept from call to call, as torch's operator takes it; None where nothing may be."""
        kept: NDArray[np.uint8] | None = self._program.kept
        return kept

    @property
    def inputs(self) -> list[tuple[int, int]]:
        """(axes, channels) of each input; 0 channels: any."""
        return list(self._program.signature(True))

    @property
    def input_dtypes(self) -> list[str]:
        """float32 or, of token ids and masks, int64, for each input."""
        return list(self._program.input_dtypes)

    @property
    def id_counts(self) -> list[int | None]:
        """How many ids each input may hold, which are 0 .. count - 1; None for one of float32."""
        return list(self._program.id_counts)

    @property
    def outputs(self) -> list[tuple[int, int]]:
        """(axes, channels) of each output; 0 channels: they follow from the sizes of a call."""
        return list(self._program.signature(False))

    @property
    def extra(self) -> dict[str, Any]:
        """Values that were saved with it; ValueError if they are damaged."""
        return read_extra(self.data)

    @property
    def max_batch(self) -> int | None:
        """The largest batch that it takes; None: any."""
        return int(self._program.max_batch) or None

    def __repr__(self) -> str:
        def shown(ends: list[tuple[int, int]]) -> str:
            return ", ".join(
                f"[N{', T' if axes == 3 else ''}, {channels or 'C'}{', H, W' if axes == 4 else ''}]"
                for axes, channels in ends
            )

        size = f"{self.data.nbytes / 1e6:.2f} MB"
        return f"Program({shown(self.inputs)} -> {shown(self.outputs)}, {size})"


def _words(x: NDArray[Any]) -> NDArray[Any]:
    """Truth values are the integers 1 and 0 to a program."""
    return x.astype(np.int64) if getattr(x, "dtype", None) == np.bool_ else x
