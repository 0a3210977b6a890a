"""How good a classifier is on held-out images, and how sure that figure is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from qkernels.answers import logits_of
from qkernels.data.batches import Batch
from qkernels.data.image_data import ImageData
from qkernels.data.progress import progress as progress_bar
from qkernels.eval_mode import eval_mode

Classifier = Callable[[Tensor], Tensor]  # images [B, C, H, W] -> logits [B, K]


@dataclass(frozen=True)
class Evaluation:
    """Top-1 on `count` images with its 95 % Wilson interval; `loss` is the mean cross-entropy."""

    correct: int
    count: int
    loss: float

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0..1."""
        return self.correct / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the accuracy."""
        return wilson_interval(self.correct, self.count)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.accuracy:.2%} [{low:.2%}, {high:.2%}] of {self.count}"


@torch.no_grad()
def predict(model: Classifier, batches: Iterable[Batch]) -> Tensor:
    """Logits float32 [N, K] of every image, in the order of `batches`, on the CPU.

    A module is put into eval mode for the time of the call. Raises ValueError without images.
    """
    with eval_mode(model) if isinstance(model, nn.Module) else nullcontext():
        logits = [logits_of(model, images).float().cpu() for images, _ in batches]
    if not logits:
        raise ValueError("no images to predict: the split is empty")
    return torch.cat(logits)


def evaluate(
    model: Classifier,
    data: ImageData,
    split: str = "test",
    *,
    batch_size: int = 250,
    limit: int | None = None,
    device: torch.device | str = "cpu",
    channels_last: bool = False,
    progress: bool = False,
) -> Evaluation:
    """Top-1 accuracy of any classifier on one split (its first `limit` images).

    Raises ValueError if the split is empty or has no labels.
    """
    batches = data.batches(split, batch_size, device=device, channels_last=channels_last)
    if limit is not None:
        batches = batches.head(limit)
    labels = batches.split.labels
    if labels is None:
        raise ValueError(f"{data.name}: the split {split} has no labels to compare with")
    with progress_bar(f"evaluating {split}", len(batches), enabled=progress) as advance:

        def watched() -> Iterable[Batch]:
            for batch in batches:
                yield batch
                advance()

        return score(predict(model, watched()), labels)


def score(logits: Tensor, labels: Tensor) -> Evaluation:
    """Evaluation of logits [N, K] against labels int64 [N].

    Raises ValueError for logits of fewer than two classes, which are always right, and labels outside 0..K-1.
    """
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(
            f"an accuracy needs logits [N, K] of two classes or more, not {list(logits.shape)}"
        )
    check_labels(labels, logits.shape[1])
    correct = int((logits.argmax(1) == labels).sum())
    return Evaluation(correct, len(labels), float(cross_entropy(logits, labels)))


def check_labels(labels: Tensor, classes: int) -> None:
    """Raise ValueError for the first label int64 [N] that is none of 0..classes-1."""
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        at = int(wrong.nonzero()[0, 0])
        raise ValueError(
            f"label {int(labels[at])} of image {at} is none of 0..{classes - 1}, the model's classes"
        )


def agreement(first: Tensor, second: Tensor) -> float:
    """Share of images on which two sets of logits [N, K] name the same class, 0..1."""
    if first.shape != second.shape:
        raise ValueError(f"logits have shapes {list(first.shape)} and {list(second.shape)}")
    return float((first.argmax(1) == second.argmax(1)).float().mean())


def wilson_interval(correct: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a share (Wilson 1927), sound near 0 and 1 and for few images too.

    Raises ValueError unless 0 <= correct <= count, count > 0 and 0 < confidence < 1.
    """
    if not 0 <= correct <= count or count == 0 or not 0 < confidence < 1:
        raise ValueError(f"no interval for {correct} of {count} at confidence {confidence}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, spread = correct / count, z * z / count
    centre = share + spread / 2
    half = z * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    low, high = (centre - half) / (1 + spread), (centre + half) / (1 + spread)
    # The ends are exact by the formula; rounding must not move them.
    return (low if correct else 0.0), (high if correct < count else 1.0)
