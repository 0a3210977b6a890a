"""The model that `qkernels.compile` returns."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from qkernels import ops, reports
from qkernels.graph.profile import profile
from qkernels.graph.program import TorchProgram
from qkernels.graph.report import ChainReport
from qkernels.modules.calling import Call
from qkernels.program import Profile


@dataclass
class Signature:
    """What a compiled model is called with, and what it returns.

    Attributes:
        known: what is asked of each flat argument.
        inputs, output: how a call is taken apart to tensors, and an answer put together.
        sizes: of each tensor, a size where it has to be the example's, None where it is free.
        max_batch: larger batches are refused.
        dtypes: of the tensors of the answer, where the model is in half precision.
    """

    known: list[Argument]
    inputs: pytree.TreeSpec
    output: pytree.TreeSpec
    sizes: list[tuple[int | None, ...]]
    max_batch: int | None
    dtypes: list[torch.dtype] | None = None

    def __post_init__(self) -> None:
        self._positional = self.inputs == pytree.tree_structure(((0,) * len(self.known), {}))
        self._returns_one = self.output.is_leaf()

    def answer(self, outputs: Any) -> Any:
        """The model's answer, put together of its tensors."""
        if self.dtypes is not None:
            outputs = [y.to(dtype) for y, dtype in zip(outputs, self.dtypes, strict=True)]
        return outputs[0] if self._returns_one else pytree.tree_unflatten(outputs, self.output)

    def tensors(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """The tensors of a call, in order.

        Raises:
            ValueError: it is another call than the one that the model was made for.
        """
        if self._positional and not kwargs:
            flat = list(args)
        else:
            flat, spec = pytree.tree_flatten((args, self._in_order(kwargs)))
            if spec != self.inputs:
                raise ValueError(
                    f"it is called with {Call(args, kwargs).described()}; it was made for other arguments"
                )
        if len(flat) != len(self.known):
            raise ValueError(f"{len(flat)} inputs were given; {len(self.known)} are needed")
        sizes = iter(self.sizes)
        found = []
        for i, (value, known) in enumerate(zip(flat, self.known, strict=True)):
            if known.dtype is None:
                known.check_value(i, value)
                continue
            known.check(i, value, next(sizes), self.max_batch)
            found.append(in_float32(value))
        return found

    def _in_order(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Keyword arguments in the order of the example, which a specification remembers."""
        order = self.inputs.child(1).context if self.inputs.num_children > 1 else []
        return {k: kwargs[k] for k in order if k in kwargs} | kwargs


def in_float32(value: Any) -> Any:
    """The value, or float32 of a tensor in half precision."""
    is_half = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if is_half else value


@dataclass
class Argument:
    """One argument of the example: a tensor's dtype and rank, or another value."""

    dtype: torch.dtype | None
    rank: int
    value: Any

    @classmethod
    def of(cls, value: Any) -> Argument:
        if isinstance(value, Tensor):
            return cls(value.dtype, value.dim(), None)
        return cls(None, 0, value)

    def check_value(self, i: int, value: Any) -> None:
        if isinstance(value, Tensor) or value != self.value:
            raise ValueError(f"input {i} is {value!r}; the model was made for {self.value!r}")

    def check(self, i: int, x: Any, sizes: tuple[int | None, ...], max_batch: int | None) -> None:
        if not isinstance(x, Tensor) or x.dtype != self.dtype or x.dim() != self.rank:
            got = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            dtype = str(self.dtype).removeprefix("torch.")
            raise ValueError(
                f"input {i} is {got}; a {dtype} tensor of {self.rank} dimensions is needed"
            )
        for at, (size, needed) in enumerate(zip(x.shape, sizes, strict=True)):
            if needed is not None and size != needed:
                raise ValueError(
                    f"input {i} is {list(x.shape)}; the model was made for a size of {needed} in dimension {at}"
                )
        if max_batch and self.rank and len(x) > max_batch:
            raise ValueError(
                f"input {i} has a batch of {len(x)}; the model was made for batches of at most {max_batch}"
            )


class CompiledModel(nn.Module):
    """A compiled model, for inference, with weights of its own; it is called as the model was.

    ``report`` says where int8 flows, and what is left to torch. ``program`` is the one program that the whole model is,
    or None where torch has a part in it, or the model is not on the CPU. Any number of threads may call at once.
    """

    program: TorchProgram | None = None

    def __init__(self, steps: nn.Module, report: ChainReport) -> None:
        super().__init__()
        self.steps = steps  # torch.export finds no submodule of the name "graph"
        reports.hang(self, report)
        self.training = False

    @property
    def report(self) -> ChainReport:
        """What there is to tell: where int8 flows, and what is left to torch."""
        return reports.report(self, ChainReport)

    @property
    def device(self) -> torch.device:
        """The device that the model was compiled on, or moved to."""
        return next(self.buffers()).device

    def profile(self, *args: Any, runs: int = 20, **kwargs: Any) -> Profile:
        """Each step's time for these inputs, the median of ``runs`` calls, with its share of the peak.

        Raises ValueError where the model is not on the CPU, or only parts of it are compiled.
        """
        raise NotImplementedError

    def save(self, path: str | os.PathLike[str], *, extra: Mapping[str, Any] | None = None) -> None:
        """Write a file for `qkernels.program.Program.load`, which needs no torch; ``extra``: JSON-able values to keep.

        Raises ValueError where the model is not on the CPU or, naming the steps, where a part of it is left to torch.
        """
        if self.device.type != "cpu":
            raise ValueError(f"the model is on {self.device}; compile it on the CPU to save it")
        if self.program is None:
            steps = ", ".join(self.report.unfused) or "the order of its inputs or outputs"
            why = self.report.uncaptured or f"left to torch: {steps}"
            raise ValueError(f"the model is no program by itself; {why}")
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


class CompiledGraph(CompiledModel):
    """A model that was captured as a whole: a graph of programs, and of steps left to torch.

    It takes other batches than the example's and, where its ``signature`` leaves them free, other sizes.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        program: TorchProgram | None,
        signature: Signature,
        report: ChainReport,
    ) -> None:
        super().__init__(graph, report)
        self.steps: fx.GraphModule
        self.signature = signature
        self._program = [program]  # in a list: it is a part of the graph already

    @property
    def program(self) -> TorchProgram | None:  # type: ignore[override]
        """The one program that the whole model is, or None."""
        return self._program[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        inputs = self.signature.tensors(args, kwargs)
        program = self._program[0]
        outputs = self.steps(*inputs) if program is None else program.run(inputs)
        trained = next((x for x in inputs if x.requires_grad), None)
        if trained is not None:
            outputs = [ops.guard(y, trained) for y in outputs]
        return self.signature.answer(outputs)

    def profile(self, *args: Any, runs: int = 20, **kwargs: Any) -> Profile:
        if self.device.type != "cpu":
            raise ValueError(
                f"the model is on {self.device}, and steps are timed on the CPU only; use torch.profiler there"
            )
        return profile(self.steps, tuple(self.signature.tensors(args, kwargs)), runs)
