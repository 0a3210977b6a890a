"""Weights that a program keeps in another form from call to call: the same bits, memory that is told, and none where
none is wanted."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import qkernels as qk
from qkernels import _core, models
from qkernels.program import Program

ISAS = [row["isa"] for row in _core.kernels() if row["available"] and row["isa"] != "amx_emulated"]


def images(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(0))


def quantized(model: nn.Module, x: Tensor) -> nn.Module:
    return qk.quantize(model.eval(), {"activation": "static"}, lambda m: m(x))


def some_model() -> tuple[nn.Module, Tensor]:
    """3x3 layers that pay, among others that do not."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
        nn.Conv2d(64, 48, 3, padding=1), nn.ReLU(), nn.Conv2d(48, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    x = images(2, 3, 40, 40)
    return quantized(net, x), x


def by_winograd(program: Program, size: tuple[int, ...]) -> list[str]:
    return [step["name"] for step in program.steps(size) if step["path"] == "winograd"]


def test_weights_are_made_once_counted_and_give_the_same_bits() -> None:
    model, x = some_model()
    chained = qk.compile(model, x, exact=True)
    assert chained.program is not None
    program = Program(chained.program.program.data)
    assert program.kept_bytes == 0
    expected = model(x).numpy()
    assert np.array_equal(program(x.numpy()), expected)
    kept = program.kept_bytes
    assert (kept > 0) == bool(by_winograd(program, tuple(x.shape)))
    assert kept <= (64 * 64 + 64 * 48 + 64 * 4) * 36 * 2
    for threads in (2, 1):
        program.threads = threads
        assert np.array_equal(program(x.numpy()), expected)
    assert program.kept_bytes == kept
    assert torch.equal(chained(x), model(x))
    assert torch.equal(copy.deepcopy(chained)(x), model(x))


def test_what_is_kept_is_refused_where_it_is_another_programs() -> None:
    model, x = some_model()
    chained = qk.compile(model, x, exact=True).program
    assert chained is not None
    chained(x)
    need = chained.program.arena_bytes(tuple(x.shape))
    arena = torch.empty(need, dtype=torch.uint8)
    kept = chained.program.kept
    assert kept is not None
    forged = torch.from_numpy(kept.copy())
    forged[:8] = 1  # where the first step's place begins, and there is one
    for wrong in (forged, torch.zeros(64, dtype=torch.uint8), torch.zeros(0, dtype=torch.uint8)):
        with pytest.raises(RuntimeError, match="it is not what this program keeps"):
            torch.ops.qkernels.run_program(chained.data, arena, [x], None, wrong)
    empty = torch.from_numpy(Program(chained.data.numpy()).kept)  # nothing is filled there
    large = torch.empty(4 * need + 2**24, dtype=torch.uint8)
    for right in (None, empty):
        y = torch.ops.qkernels.run_program(chained.data, large, [x], None, right)[0]
        assert torch.equal(y, model(x))


SCRIPT = """
import json, sys, numpy as np
from qkernels.program import Program
program = Program.load(sys.argv[1])
x = np.load(sys.argv[2])
np.save(sys.argv[3], program(x))
steps = {s["name"]: s["path"] for s in program.steps(x.shape)}
print(json.dumps([steps, program.kept_bytes, program.arena_bytes(x.shape)]))
"""


def run(folder: Path, **environment: str) -> tuple[dict[str, str], int, int, np.ndarray]:
    """Path of each step, kept bytes, arena bytes and the answer of a process with these variables."""
    names = [str(folder / n) for n in ("net.qkp", "x.npy", "y.npy")]
    command = [sys.executable, "-c", SCRIPT, *names]
    done = subprocess.run(
        command, env=os.environ | environment, check=True, capture_output=True, text=True
    )
    return *json.loads(done.stdout), np.load(names[2])


def save(folder: Path, model: nn.Module, x: Tensor) -> np.ndarray:
    qk.compile(model, x, exact=True).save(folder / "net.qkp")
    np.save(folder / "x.npy", x.numpy())
    y: np.ndarray = model(x).numpy()
    return y


@pytest.mark.parametrize("isa", ISAS)
def test_a_resnet_has_the_same_bits_by_every_path(tmp_path: Path, isa: str) -> None:
    torch.manual_seed(0)
    x = images(3, 3, 32, 32)
    expected = save(tmp_path, quantized(models.create("resnet8"), x), x)
    for path in ("winograd", "direct"):
        steps, _, _, y = run(tmp_path, QKERNELS_MAX_ISA=isa, QKERNELS_CONV_PATH=path)
        assert ("winograd" in steps.values()) == (path == "winograd")
        assert np.array_equal(y, expected), path


def test_nothing_is_kept_where_memory_shall_stay_small(tmp_path: Path) -> None:
    model, x = some_model()
    expected = save(tmp_path, model, x)
    _, kept, arena, y = run(tmp_path, QKERNELS_CONV_PATH="winograd")
    _, none, more, same = run(tmp_path, QKERNELS_CONV_PATH="winograd", QKERNELS_KEEP_WEIGHTS="0")
    assert kept > 0 and none == 0 and more > arena
    assert np.array_equal(y, expected) and np.array_equal(same, expected)


def test_wide_layers_go_by_their_weights_sums(tmp_path: Path) -> None:
    """256 channels: sums of all weights at 127 reach 2^25, those of drawn weights do not."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 256, 1), nn.Conv2d(256, 16, 3), nn.Conv2d(16, 256, 1), nn.Conv2d(256, 16, 3)
    )
    nn.init.ones_(net[3].weight)  # type: ignore[arg-type]
    x = images(1, 3, 12, 12)
    expected = save(tmp_path, quantized(net, x), x)
    for keep in ("1", "0"):
        steps, _, _, y = run(tmp_path, QKERNELS_CONV_PATH="winograd", QKERNELS_KEEP_WEIGHTS=keep)
        assert (steps["1"] == "winograd") and steps["3"] in ("in_place", "packed")
        assert np.array_equal(y, expected)


@pytest.mark.parametrize("variable", ["QKERNELS_KEEP_WEIGHTS", "QKERNELS_CONV_PATH"])
def test_an_unknown_value_is_refused_without_torch_too(tmp_path: Path, variable: str) -> None:
    model, x = some_model()
    save(tmp_path, model, x)
    with pytest.raises(subprocess.CalledProcessError) as error:
        run(tmp_path, **{variable: "some"})
    assert f"{variable}='some' is unknown; choose one of" in error.value.stderr
