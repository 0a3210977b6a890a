"""Trained weights and official images; skipped where the development data is absent."""

import os
from pathlib import Path

import pytest
import torch

import qkernels
from qkernels import models, prune
from qkernels.data import load
from qkernels.data.paths import find
from qkernels.evaluate import evaluate
from qkernels.measuring.costs import count_macs

ROOT = Path(os.environ.get("QKERNELS_DATA", "/nonexistent"))
WEIGHTS = next(
    (p for p in (ROOT / "models", ROOT.parent / "models") if (p / "cifar10_resnet20.safetensors").is_file()), None
)  # fmt: skip
pytestmark = pytest.mark.skipif(
    WEIGHTS is None or find(("official_subset.npz",), ROOT) is None,
    reason="needs QKERNELS_DATA with the subset and the weights of resnet20",
)
SHAPE = (3, 32, 32)


def resnet20() -> torch.nn.Module:
    assert WEIGHTS is not None
    net = models.load_weights(models.create("resnet20"), WEIGHTS / "cifar10_resnet20.safetensors")
    return net.eval()


def accuracy(net: torch.nn.Module) -> float:
    data = load("cifar10-subset")
    return evaluate(net, type(data)(**{**vars(data), "test": data.test.head(256)})).accuracy


@pytest.mark.parametrize("how", ["magnitude", "entropy", "taylor"])
def test_the_lowest_scores_are_those_to_drop(how: str) -> None:
    """Without any training: the other end of the ranking is what the network lives on."""
    net, sample = resnet20(), list(load("cifar10-subset").batches("train", 128).head(256))
    scores = {
        "magnitude": lambda: prune.magnitude(prune.weights(net)),
        "entropy": lambda: prune.entropy(net, sample),
        "taylor": lambda: prune.taylor(net, sample),
    }[how]()
    macs, x = int(0.8 * count_macs(net, SHAPE)), torch.zeros(1, *SHAPE)
    lowest, highest = (
        accuracy(prune.prune_channels(net, x, scores, macs=macs, multiple=1, order=order))
        for order in ("lowest", "highest")
    )
    assert lowest > highest + 0.25


def test_a_pruned_and_quantized_model_keeps_what_the_pruned_one_knows() -> None:
    net, x = resnet20(), torch.zeros(1, *SHAPE)
    scores = prune.magnitude(prune.weights(net))
    smaller = prune.prune_channels(net, x, scores, macs=int(0.9 * count_macs(net, SHAPE)))
    sample = [images for images, _ in load("cifar10-subset").batches("train", 64).head(256)]
    int8 = qkernels.quantize(smaller, calibration=sample)
    assert accuracy(int8) == pytest.approx(accuracy(smaller), abs=0.02)
