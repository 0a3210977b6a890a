"""Published weights on official images; skipped where the development data is absent."""

import os
from pathlib import Path

import pytest

from qkernels.data import load
from qkernels.data.paths import find
from qkernels.evaluate import evaluate
from qkernels.models import create, load_weights

ROOT = Path(os.environ.get("QKERNELS_DATA", "/nonexistent"))


def weights(name: str) -> Path | None:
    places = (ROOT / "models", ROOT.parent / "models")
    return next((p / name for p in places if (p / name).is_file()), None)


@pytest.mark.skipif(
    find(("official_subset.npz",), ROOT) is None, reason="needs QKERNELS_DATA with the subset"
)
@pytest.mark.parametrize(("name", "correct"), [("resnet20", 854), ("resnet56", 863)])
def test_pretrained_accuracy(name: str, correct: int) -> None:
    """91.63 % and 92.60 % of 932 images; one image of slack for other summation orders."""
    path = weights(f"cifar10_{name}.safetensors")
    if path is None:
        pytest.skip(f"no weights of {name} beside the data")
    result = evaluate(load_weights(create(name), path), load("cifar10-subset"))
    assert result.count == 932
    assert abs(result.correct - correct) <= 1
