"""torch.export programs and AOTInductor packages of models with int8 layers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qkernels as qk
from qkernels import models

BATCH = torch.export.Dim("batch", min=1, max=64)


def exported(model: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(model, (x,), dynamic_shapes=({0: BATCH},))


def int8_model(name: str, config: str | dict[str, Any]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    if name == "encoder":
        model, x = models.TransformerEncoder(24, 1, heads=3), torch.randn(4, 5, 24)
    else:
        model, x = models.create(name, image_size=8, width=4), torch.randn(4, 3, 8, 8)
    return qk.quantize(model.eval(), config, [x]), x


@pytest.mark.parametrize("activation", ["static", "dynamic"])
@pytest.mark.parametrize("name", ["tutorial_cnn", "resnet8", "encoder"])
def test_an_exported_program_keeps_the_bits_and_the_batch_free(name: str, activation: str) -> None:
    model, x = int8_model(name, activation)
    program = exported(model, x).module()
    for batch in (1, 3):
        assert torch.equal(program(x[:batch]), model(x[:batch]))


def test_an_exported_program_is_saved_and_loaded(tmp_path: Path) -> None:
    model, x = int8_model("tutorial_cnn", "static")
    torch.export.save(exported(model, x), tmp_path / "m.pt2")
    assert torch.equal(torch.export.load(tmp_path / "m.pt2").module()(x), model(x))


@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="no C++ compiler to build with"
)
def test_an_aotinductor_package_runs_our_kernels(tmp_path: Path) -> None:
    model, x = int8_model("tutorial_cnn", {"overrides": {"Linear": {"activation": "dynamic"}}})
    path = torch._inductor.aoti_compile_and_package(
        exported(model, x), package_path=str(tmp_path / "m.pt2")
    )
    package = torch._inductor.aoti_load_package(path)
    for batch in (1, 4):
        assert torch.equal(package(x[:batch]), model(x[:batch]))
