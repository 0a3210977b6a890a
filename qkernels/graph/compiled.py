"""The model that `qkernels.compile` returns."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from qkernels import reports
from qkernels.graph.profile import profile
from qkernels.graph.program import TorchProgram
from qkernels.graph.report import ChainReport
from qkernels.program import Profile


class CompiledModel(nn.Module):
    """A chained model, for inference, with weights of its own.

    Inputs are float32 of the examples' ranks; batch and image size are free. ``report`` says where int8 flows, and what
    is left to torch. ``program`` is the one program that the whole model is, or None where torch has a part in it, or
    the model is not on the CPU. Any number of threads may call at once.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        program: TorchProgram | None,
        examples: tuple[Any, ...],
        report: ChainReport,
        max_batch: int | None,
    ) -> None:
        super().__init__()
        self.steps = graph  # torch.export finds no submodule of the name "graph"
        reports.hang(self, report)
        self._ranks = [x.dim() if isinstance(x, Tensor) else None for x in examples]
        self._max_batch = max_batch
        self._program = [program]  # in a list: it is a part of the graph already
        returned = graph.graph.output_node().args[0]
        self._many = next((kind for kind in (tuple, list) if isinstance(returned, kind)), None)
        self.training = False

    @property
    def report(self) -> ChainReport:
        return reports.report(self, ChainReport)

    @property
    def program(self) -> TorchProgram | None:
        return self._program[0]

    @property
    def device(self) -> torch.device:
        return next(self.buffers()).device

    def forward(self, *inputs: Any) -> Any:
        self._check(inputs)
        program = self._program[0]
        if program is None:
            return self.steps(*inputs)
        outputs = program.run(inputs)
        return self._many(outputs) if self._many else outputs[0]

    def _check(self, inputs: tuple[Any, ...]) -> None:
        if len(inputs) != len(self._ranks):
            raise ValueError(f"{len(inputs)} inputs were given; {len(self._ranks)} are needed")
        for i, (x, rank) in enumerate(zip(inputs, self._ranks, strict=True)):
            if rank is None:
                continue
            if not isinstance(x, Tensor) or x.dtype != torch.float32 or x.dim() != rank:
                got = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
                raise ValueError(
                    f"input {i} is {got}; a float32 tensor of {rank} dimensions is needed"
                )
            if self._max_batch and rank and len(x) > self._max_batch:
                raise ValueError(
                    f"input {i} has a batch of {len(x)}; the model was made for batches of at most {self._max_batch}"
                )

    def profile(self, *inputs: Any, runs: int = 20) -> Profile:
        """Each step's time for these inputs, the median of ``runs`` calls, with its share of the peak."""
        if self.device.type != "cpu":
            raise ValueError(
                f"the model is on {self.device}, and steps are timed on the CPU only; use torch.profiler there"
            )
        self._check(inputs)
        return profile(self.steps, inputs, runs)

    def save(self, path: str | os.PathLike[str], *, extra: Mapping[str, Any] | None = None) -> None:
        """As a file for `qkernels.program.Program.load`, which needs no torch; ``extra``: JSON-able values to keep.

        Raises ValueError where the model is not on the CPU or, naming the steps, where a part of it is left to torch.
        """
        if self.device.type != "cpu":
            raise ValueError(f"the model is on {self.device}; compile it on the CPU to save it")
        if self.program is None:
            steps = ", ".join(self.report.unfused) or "the order of its inputs or outputs"
            raise ValueError(f"the model is no program by itself; left to torch: {steps}")
        self.program.program.save(path, extra=extra)

    def _apply(self, fn: Any, recurse: bool = True) -> CompiledModel:
        leaves = fn(torch.empty(0, dtype=torch.uint8)).device.type != "cpu"
        if leaves and any(isinstance(m, TorchProgram) for m in self.modules()):
            raise ValueError(
                "a model compiled on the CPU stays there, since its programs do; "
                "move the int8 model, then compile it"
            )
        super()._apply(fn, recurse)
        return self

    def train(self, mode: bool = True) -> CompiledModel:
        """Has no effect: the model is for inference in either mode."""
        return self

    def __repr__(self) -> str:
        return f"CompiledModel(\n{self.report!r}\n)"
