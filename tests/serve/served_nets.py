"""Small networks as programs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import qkernels as qk
from qkernels.program import Program
from qkernels.program.format import Step, Value, assemble

SIZE = "1,3,8,8"


class Heads(nn.Module):
    """Two inputs and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(2, 8, 3), nn.Linear(8 * 36, 5)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        z = torch.relu(self.a(x)) + self.b(y)
        return self.c(z.flatten(1)), z


def save_words(path: Path, tokens: int = 0) -> Path:
    """Rows of two tables for ids below 50 and masks, both int64 [N, T]; ``tokens``: the only T, 0: any."""
    random = np.random.default_rng(0)
    values = [Value(tokens, 2, "int64", callers=True) for _ in range(2)]
    values += [Value(channels, 3, "float32", callers=True) for channels in (4, 1)]
    tables = (random.standard_normal((rows, c)).astype(np.float32) for rows, c in ((50, 4), (2, 1)))
    steps = [
        Step(
            "embedding",
            f"table {i}",
            i,
            2 + i,
            fields={"rows": len(table)},
            constants={"table": table},
        )
        for i, table in enumerate(tables)
    ]
    Program(assemble(values, steps, [0, 1], [2, 3])).save(path)
    return path


def save_program(path: Path, seed: int = 0) -> Path:
    """A network of two layers for [N, 3, 8, 8], other weights for another seed."""
    torch.manual_seed(seed)
    x = torch.randn(4, 3, 8, 8)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).eval()
    qk.compile(qk.quantize(net, "static", [x]), x).save(path)
    return path
