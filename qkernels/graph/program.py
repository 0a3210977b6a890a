"""A program as a module: one operator runs it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from qkernels.program import Program

_run = torch.ops.qkernels.run_program


class TorchProgram(nn.Module):
    """Runs the bytes of a program on tensors, on torch's threads.

    Any number of threads may call at once: each call works in an arena of its own, kept for the next.
    """

    data: Tensor

    def __init__(self, data: Tensor) -> None:
        super().__init__()
        self.register_buffer("data", data)
        self._needs: dict[Any, int] = {}  # bytes of the arena, by threads and sizes of the inputs
        self._free: list[Tensor] = []
        self._program: Program | None = None
        self._kept: Tensor | None = None  # what the program keeps: the same memory

    @property
    def program(self) -> Program:
        """The same bytes for NumPy."""
        if self._program is None:
            self._program = Program(self.data.numpy())
            self.data = torch.from_numpy(self._program.data)
            kept = self._program.kept
            self._kept = None if kept is None else torch.from_numpy(kept)
        return self._program

    def forward(self, *inputs: Tensor) -> Any:
        outputs = self.run(inputs)
        return outputs[0] if len(outputs) == 1 else outputs

    @torch.compiler.disable
    def run(self, inputs: tuple[Tensor, ...], seconds: Tensor | None = None) -> list[Tensor]:
        """``seconds``: float64, one a step, receives their times."""
        inputs = tuple(x.long() if x.dtype == torch.bool else x for x in inputs)
        key = (torch.get_num_threads(), *(x.shape for x in inputs))
        need = self._needs.get(key)
        if need is None:
            need = self._needs[key] = self._arena_bytes(inputs)
        try:
            arena = self._free.pop()
        except IndexError:
            arena = torch.empty(need, dtype=torch.uint8)
        if arena.numel() < need:
            arena = torch.empty(need, dtype=torch.uint8)
        outputs: list[Tensor] = _run(self.data, arena, inputs, seconds, self._kept)
        self._free.append(arena)
        return outputs

    def _arena_bytes(self, inputs: tuple[Tensor, ...]) -> int:
        self.program.threads = torch.get_num_threads()
        if len(self._needs) >= 64:  # of servers with many image sizes
            self._needs.clear()
        return self.program.arena_bytes(*(tuple(x.shape) for x in inputs))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_needs": {}, "_free": [], "_program": None, "_kept": None}

    def extra_repr(self) -> str:
        return repr(self.program)
