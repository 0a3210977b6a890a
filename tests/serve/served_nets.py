"""Small networks as programs."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import qkernels as qk

SIZE = "1,3,8,8"


class Heads(nn.Module):
    """Two inputs and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(2, 8, 3), nn.Linear(8 * 36, 5)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        z = torch.relu(self.a(x)) + self.b(y)
        return self.c(z.flatten(1)), z


def save_program(path: Path, seed: int = 0) -> Path:
    """A network of two layers for [N, 3, 8, 8], other weights for another seed."""
    torch.manual_seed(seed)
    x = torch.randn(4, 3, 8, 8)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).eval()
    qk.compile(qk.quantize(net, "static", [x]), x).save(path)
    return path
