"""Choose how ranges are found by k-fold cross-validation on what the model is for."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qkernels.modules.answers import logits_of
from qkernels.quantization.config import QuantConfig
from qkernels.quantization.convert import quantize

CANDIDATES: tuple[Mapping[str, Any], ...] = (
    {"observer": "minmax"},
    {"observer": "percentile", "percentile": 99.999},
    {"observer": "percentile", "percentile": 99.99},
    {"observer": "percentile", "percentile": 99.9},
    {"observer": "mse"},
    {"observer": "entropy"},
)


@dataclass(frozen=True)
class CrossValidation:
    """The answer of `cross_validate`.

    Attributes:
        config: the candidate of the best mean score; of equal ones the first.
        scores: (settings, score of each fold), in the order of the candidates.
    """

    config: QuantConfig
    scores: tuple[tuple[Mapping[str, Any], tuple[float, ...]], ...]

    def __str__(self) -> str:
        return "\n".join(
            f"{statistics.mean(folds):.4f} +- {statistics.pstdev(folds):.4f}  "
            + ", ".join(f"{key}={value}" for key, value in settings.items())
            for settings, folds in self.scores
        )


def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Share of right answers, 0..1."""
    with torch.inference_mode():
        return float((logits_of(model, inputs).argmax(1) == labels).float().mean())


def cross_validate(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    config: QuantConfig | Mapping[str, Any] | None = None,
    candidates: Sequence[Mapping[str, Any]] = CANDIDATES,
    folds: int = 5,
    seed: int = 0,
    metric: Callable[[nn.Module, Tensor, Tensor], float] = accuracy,
) -> CrossValidation:
    """Try each candidate's ranges: calibrated on all folds but one, scored on that one.

    Use training or validation data: test images that chose the range no longer test it.

    Args:
        model: float weights; not changed.
        inputs: [N, ...], what the model is called with.
        labels: [N], what `metric` compares with.
        config: what the candidates' settings (fields of QuantConfig) are put on.
        candidates: settings to try, fields of QuantConfig each.
        folds: parts of the data, 2..N; the same for every candidate.
        seed: of the draw of the folds.
        metric: (int8 model, inputs, labels) -> score, larger is better.

    Raises:
        ValueError: fewer than two folds or fewer inputs than folds, no candidates, an unknown setting.
    """
    if not 2 <= folds <= len(inputs):
        raise ValueError(f"folds={folds} must be between 2 and the {len(inputs)} inputs")
    if len(labels) != len(inputs):
        raise ValueError(f"{len(inputs)} inputs and {len(labels)} labels must be equally many")
    if not candidates:
        raise ValueError("no candidates to choose from: give at least one dict of settings")
    base = QuantConfig.of(config).to_dict()
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    parts = order.tensor_split(folds)
    scores = []
    for settings in candidates:
        candidate = QuantConfig.from_dict(base | dict(settings))
        results = []
        for held in range(folds):
            rest = torch.cat([part for i, part in enumerate(parts) if i != held])
            int8 = quantize(model, candidate, inputs[rest].split(64))
            results.append(metric(int8, inputs[parts[held]], labels[parts[held]]))
        scores.append((settings, tuple(results)))
    best = max(range(len(scores)), key=lambda i: statistics.mean(scores[i][1]))
    return CrossValidation(QuantConfig.from_dict(base | dict(scores[best][0])), tuple(scores))
