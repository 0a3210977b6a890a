from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from serve_process import Served, serving
from served_nets import SIZE, Heads, save_program

import qkernels as qk


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
