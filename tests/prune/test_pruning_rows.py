"""The table's rows of pruning run, resume, and point to files that exist."""

import sys
from pathlib import Path

import pytest
import torch
from prune_nets import toy_data
from torch import nn

from qkernels import models

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from techniques import pruning  # noqa: E402
from techniques.row import Setting  # noqa: E402


def student() -> nn.Module:
    torch.manual_seed(0)
    return models.create("resnet14", num_classes=2).eval()


def test_rows_have_names_of_their_own_and_files_that_exist() -> None:
    assert len({row.name for row in pruning.ROWS}) == len(pruning.ROWS)
    for row in pruning.ROWS:
        assert all((ROOT / path).is_file() for path in (row.code, row.test, row.example))
    named = {name for row in pruning.ROWS for name in row.technique}
    assert named >= {"S1-1", "S1-2", "S1-3", "S2-1", "S2-2", "S2-3", "S2-4", "S2-5", "S2-15"}
    assert named >= {"S3-11", "S3-12", "S4-1", "S4-3"}


@pytest.mark.parametrize(
    "name",
    [
        "weights: magnitude, global, cubic",
        "channels: entropy",
        "blocks, distilled",
        "blocks of the teacher, distilled",
    ],
)
def test_a_row_makes_a_float_and_an_int8_model_and_resumes_to_the_same_bits(
    name: str, tmp_path: Path
) -> None:
    row = next(row for row in pruning.ROWS if row.name == name)
    setting = Setting(toy_data(128), student(), student, student(), 1, tmp_path)
    first, again = row.run(setting), row.run(setting)
    x = torch.randn(2, 3, 8, 8)
    assert first.float_model is not None and first.int8_model is not None
    assert torch.equal(first.int8_model(x), again.int8_model(x))
    if name.startswith("weights"):
        assert first.figures[pruning.ZEROS] == pytest.approx(pruning.WEIGHTS, abs=0.01)
    else:
        asked = pruning.BLOCK_MACS if name == "blocks, distilled" else pruning.MACS
        assert first.figures[pruning.GONE] >= asked
