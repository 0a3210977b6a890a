"""The code in docs/distilling.md runs as it stands, with fewer epochs."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from qkernels import data as datasets
from qkernels import distill, models

pytest.importorskip("accelerate")
GUIDE = (Path(__file__).parents[2] / "docs" / "distilling.md").read_text()


def test_the_guides_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(distill, "OBJECTIVES", dict(distill.OBJECTIVES))
    torch.manual_seed(0)
    digits = datasets.load("digits")
    data = dataclasses.replace(digits, train=digits.train.head(200), val=digits.val.head(100))
    teacher, student = (models.create("resnet8", in_channels=1, width=w) for w in (8, 4))
    names = {"teacher": teacher, "student": student, "data": data}
    blocks = re.findall(r"```python\n(.*?)```", GUIDE, re.S)
    assert len(blocks) == 2
    for block in blocks:
        short = block.replace("epochs=30", "epochs=1").replace("until=0.87", "until=0.01")
        exec(short, names)
    assert (tmp_path / "runs/dkd/model.safetensors").exists()
    assert "sparse" in distill.OBJECTIVES


def test_the_guide_names_every_loss() -> None:
    assert all(f"`{name}`" in GUIDE for name in distill.OBJECTIVES)
