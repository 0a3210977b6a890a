"""The model that `qkernels.compile` returns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from qkernels.graph.report import ChainReport


class CompiledModel(nn.Module):
    """A chained model, for inference. It shares the layers, weights included, of the model it was made from.

    Inputs are float32 of the examples' ranks; batch and image size are free. ``report`` says where int8 flows.
    """

    def __init__(
        self, graph: fx.GraphModule, examples: tuple[Any, ...], report: ChainReport
    ) -> None:
        super().__init__()
        self.graph = graph
        self.report = report
        self._ranks = [x.dim() if isinstance(x, Tensor) else None for x in examples]
        self.training = False

    def forward(self, *inputs: Any) -> Any:
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
        return self.graph(*inputs)

    def train(self, mode: bool = True) -> CompiledModel:
        """Has no effect: the model is for inference in either mode."""
        return self

    def __repr__(self) -> str:
        return f"CompiledModel(\n{self.report!r}\n)"
