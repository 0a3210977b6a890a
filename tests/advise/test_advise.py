"""The advisor: what it tries, in which order, and what it takes."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import qkernels as qk
from qkernels import data, models
from qkernels.advise import Advice, Trial, advise
from qkernels.distill import TrainConfig, train
from qkernels.evaluate import Evaluation

CONFIG = TrainConfig.model_validate({"epochs": 2, "lr": 0.05, "batch_size": 64})


def trial(name: str, correct: int, ms: float) -> Trial:
    return Trial(name, nn.Identity(), Evaluation(correct, 100, 0.0), ms, 1000)


def test_the_best_is_the_fastest_that_reaches_the_floor_and_the_frontier_has_no_beaten_one() -> (
    None
):
    trials = (
        trial("float", 95, 2.0),
        trial("int8", 94, 1.0),
        trial("slow", 93, 1.5),
        trial("small", 85, 0.5),
    )
    advice = Advice(trials, floor=0.9, latency_ms=1.2)
    assert advice.best.name == "int8" and advice.met
    assert [t.name for t in advice.frontier] == ["small", "int8", "float"]
    assert "take int8" in str(advice) and "below 90.00%" in str(advice)


@pytest.mark.parametrize(
    ("floor", "latency", "sentence"),
    [(0.99, 1.0, "nothing tried reaches 99.00%; the most accurate is float"),
     (0.9, 0.1, "reaches 90.00% takes 0.1 ms; the fastest is int8")],
)  # fmt: skip
def test_what_cannot_be_reached_is_said_with_the_nearest(
    floor: float, latency: float, sentence: str
) -> None:
    advice = Advice((trial("float", 95, 2.0), trial("int8", 94, 1.0)), floor, latency)
    assert not advice.met and sentence in str(advice)


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, data.ImageData]:
    torch.manual_seed(0)
    digits = data.load("digits")
    model = models.create("tutorial_cnn", in_channels=1, image_size=8, width=32)
    train(model, digits, CONFIG, progress=False)
    return model.eval(), digits


def test_it_distils_prunes_and_quantizes_until_accuracy_is_lost(
    trained: tuple[nn.Module, data.ImageData], tmp_path: Path
) -> None:
    model, digits = trained
    torch.manual_seed(1)
    student = models.create("tutorial_cnn", in_channels=1, image_size=8, width=8)
    how = {"floor": 0.5, "config": CONFIG, "shares": (0.4,), "progress": False}
    advice = advise(model, digits, run_dir=tmp_path, students={"small": student}, **how)  # type: ignore[arg-type]
    assert [t.name for t in advice.trials] == [
        "float",
        "int8",
        "small distilled, int8",
        "40% pruned, int8",
    ]
    assert advice.best.name != "float" and advice.met
    pruned = advice.trials[-1]
    assert pruned.channels and pruned.bytes < advice.trials[1].bytes
    kwargs = {"in_channels": 1, "image_size": 8, "width": 32, "channels": pruned.channels}
    architecture = {"name": "tutorial_cnn", "kwargs": kwargs}
    qk.save(pruned.model, tmp_path / "best.safetensors", architecture=architecture)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(qk.load(tmp_path / "best.safetensors")(x), pruned.model(x))
    advice.plot(tmp_path / "frontier.svg")
    assert "pruned" in (tmp_path / "frontier.svg").read_text()
    again = advise(model, digits, run_dir=tmp_path, students={"small": student}, **how)  # type: ignore[arg-type]
    assert [t.accuracy for t in again.trials] == [t.accuracy for t in advice.trials]


def test_it_stops_when_the_asked_for_is_found(
    trained: tuple[nn.Module, data.ImageData], tmp_path: Path
) -> None:
    advice = advise(*trained, floor=0.1, latency_ms=1e6, run_dir=tmp_path, progress=False)
    assert [t.name for t in advice.trials] == ["float"] and advice.met


HOW = {"floor": 0.1, "config": CONFIG, "shares": (0.4,), "progress": False}


def test_without_torch_pruning_what_was_tried_is_kept_and_a_note_says_why(
    trained: tuple[nn.Module, data.ImageData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    advice = advise(*trained, run_dir=tmp_path, **HOW)  # type: ignore[arg-type]
    assert [t.name for t in advice.trials] == ["float", "int8"]
    assert advice.notes == (
        '40% pruned: torch_pruning is needed for this: pip install "qkernels[prune]"',
    )


def test_the_folder_of_other_weights_or_another_training_is_refused(
    trained: tuple[nn.Module, data.ImageData], tmp_path: Path
) -> None:
    model, digits = trained
    advise(model, digits, run_dir=tmp_path, **HOW)  # type: ignore[arg-type]
    longer = HOW | {"config": CONFIG.model_copy(update={"epochs": 3})}
    with pytest.raises(ValueError, match="holds a run with epochs=2, not 3"):
        advise(model, digits, run_dir=tmp_path, **longer)  # type: ignore[arg-type]
    other = copy.deepcopy(model)
    torch.nn.init.zeros_(next(other.parameters()))
    with pytest.raises(ValueError, match="was pruned with weights="):
        advise(other, digits, run_dir=tmp_path, **HOW)  # type: ignore[arg-type]


def test_bad_wishes_are_one_sentence(
    trained: tuple[nn.Module, data.ImageData], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"floor=91 must be in \[0, 1\]"):
        advise(*trained, floor=91, run_dir=tmp_path)
    with pytest.raises(ValueError, match="latency_ms=0 must be positive"):
        advise(*trained, floor=0.9, latency_ms=0, run_dir=tmp_path)
