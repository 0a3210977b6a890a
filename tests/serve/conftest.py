from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from serve_process import Served, serving
from served_nets import SIZE, Heads, save_program

import qkernels as qk
from qkernels.image_input import ImageInput
from qkernels.pipeline import PipelineConfig, run_pipeline
from qkernels.program import Program


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_program(tmp_path_factory.mktemp("served") / "small.qkp")


@pytest.fixture(scope="session")
def two_headed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "heads.qkp"
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8), torch.randn(4, 2, 8, 8)
    model = qk.quantize(Heads().eval(), "static", lambda m: m(*x))
    qk.compile(model, x, exact=True).save(path)
    return path


@pytest.fixture(scope="session")
def served(program: Path) -> Iterator[Served]:
    with serving(program, "--size", SIZE, "--max-batch", 8, "--max-body", 0.1) as server:
        yield server


@pytest.fixture(scope="session")
def classifier(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small program with names for its five outputs."""
    path = tmp_path_factory.mktemp("served") / "classifier.qkp"
    described = ImageInput(tuple("vwxyz"), (8, 8), (0.5,) * 3, (0.25,) * 3)
    Program.load(program).save(path, extra=described.as_extra())
    return path


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the main job leaves, after a few epochs on real digits."""
    run = tmp_path_factory.mktemp("student")
    small = {"teacher_epochs": 2, "teacher_width": 8, "epochs": 4, "student_width": 8}
    timing = {"timing_seconds": 0.01, "throughput_batch": 4}
    run_pipeline(PipelineConfig.for_data("digits", run=run, lr=0.02, **small, **timing))
    return run
