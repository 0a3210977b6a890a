"""Weights begin at cache lines, wherever a program comes from: tiles that cross lines take twice the time."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import qkernels as qk
from qkernels import _core
from qkernels.program import Program
from qkernels.program.memory import at_line, zeros
from qkernels.serve.model import open_model


def begins_at_line(data: np.ndarray) -> bool:
    return data.ctypes.data % _core.ALIGNMENT == 0


@pytest.fixture(scope="module")
def compiled() -> nn.Module:
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    net = nn.Sequential(nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 3)).eval()
    return qk.compile(qk.quantize(net, "static", x), x)


@pytest.mark.parametrize("count", [1, 63, 64, 65, 1000, 10**6])
def test_new_memory_begins_at_a_cache_line(count: int) -> None:
    several = [zeros(count) for _ in range(20)]
    assert all(begins_at_line(data) and data.nbytes == count and not data.any() for data in several)


@pytest.mark.parametrize("offset", range(0, 72, 8))
def test_bytes_are_moved_only_where_they_begin_elsewhere(offset: int) -> None:
    data = zeros(200)[offset : offset + 100]
    data[:] = np.arange(100)
    moved = at_line(data)
    assert begins_at_line(moved)
    assert np.array_equal(moved, data)
    assert (moved is data) == (offset % 64 == 0)


def test_a_compiled_program_begins_at_a_cache_line_copied_and_pickled_too(
    compiled: nn.Module,
) -> None:
    for model in (compiled, copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))):
        assert begins_at_line(model.program.data.numpy())


def test_a_saved_program_begins_at_a_cache_line_and_can_be_served(
    compiled: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "net.qkp"
    compiled.program.program.save(path, extra={"classes": ["a", "b", "c"]})
    read = np.frombuffer(b"\0" + path.read_bytes(), np.uint8)[1:]
    for program in (Program.load(path), Program(read), Program(np.fromfile(path, np.uint8))):
        assert begins_at_line(program.data)
    assert open_model(path, [], 1).run([np.ones((1, 8), np.float32)])[0].shape == (1, 3)


def test_a_state_that_begins_elsewhere_is_moved_before_it_runs(compiled: nn.Module) -> None:
    model = copy.deepcopy(compiled)
    x = torch.randn(2, 8)
    expected = compiled(x)
    state = {
        name: torch.cat([value.new_zeros(8), value])[8:]
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(state, assign=True)
    assert torch.equal(model(x), expected)
    assert begins_at_line(model.program.data.numpy())


def test_packed_weights_begin_at_a_cache_line() -> None:
    several = [_core.pack_weight(np.ones((16, k), np.int8)) for k in range(1, 600, 50)]
    assert all(map(begins_at_line, several))
