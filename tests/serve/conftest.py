from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from serve_process import Served, serving
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
    qk.compile(qk.quantize(net, "static", [x])[0], x).save(path)
    return path


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_program(tmp_path_factory.mktemp("served") / "small.qkp")


@pytest.fixture(scope="session")
def two_headed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "heads.qkp"
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8), torch.randn(4, 2, 8, 8)
    model, _ = qk.quantize(Heads().eval(), "static", lambda m: m(*x))
    qk.compile(model, x).save(path)
    return path


@pytest.fixture(scope="session")
def served(program: Path) -> Iterator[Served]:
    with serving(program, "--size", SIZE, "--max-batch", 8, "--max-body", 0.1) as server:
        yield server
