"""How good a model is on held-out images, how two models differ on them, and how sure those figures are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from qkernels.data.batches import Batch
from qkernels.data.image_data import ImageData
from qkernels.data.task import Labels, check_labels
from qkernels.distill.label_loss import plain_loss
from qkernels.metrics import metrics
from qkernels.modules.answers import logits_of
from qkernels.modules.eval_mode import eval_mode
from qkernels.utils.progress import progress as progress_bar

Classifier = Callable[[Tensor], Tensor]  # images [B, C, H, W] -> logits [B, K]


@dataclass(frozen=True)
class Evaluation:
    """Top-1 on `count` images with its 95 % Wilson interval; `loss` is the mean cross-entropy."""

    correct: int
    count: int
    loss: float

    metric = "accuracy"

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0..1."""
        return self.correct / self.count

    @property
    def value(self) -> float:
        """What models are compared by: the accuracy."""
        return self.accuracy

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the accuracy."""
        return wilson_interval(self.correct, self.count)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.accuracy:.2%} [{low:.2%}, {high:.2%}] of {self.count}"


@dataclass(frozen=True)
class Measured:
    """How good answers to labels are that are not one class each; `loss` is binary cross-entropy or the squared error.

    Attributes:
        metrics: name -> value, those of `qkernels.metrics`; models are compared by the first.
        unlearned: the value of the first that answering without looking at the input reaches.
    """

    metrics: dict[str, float]
    unlearned: float
    count: int
    loss: float

    @property
    def metric(self) -> str:
        """The name of what models are compared by."""
        return next(iter(self.metrics))

    @property
    def value(self) -> float:
        """What models are compared by."""
        return self.metrics[self.metric]

    def __str__(self) -> str:
        return ", ".join(f"{k} {v:.4f}" for k, v in self.metrics.items()) + f" of {self.count}"


Quality = Evaluation | Measured


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
) -> Quality:
    """How good a model is on one split (its first `limit` images): top-1 accuracy, and `Measured` of other labels.

    Raises ValueError if the split is empty or has no labels, ImportError where metrics need torchmetrics.
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

        return judge(predict(model, watched()), labels, data.meaning)


def accuracy_of(model: Classifier, data: ImageData, split: str = "test", **how: Any) -> Evaluation:
    """`evaluate` where labels are classes; ValueError where they are not."""
    check_of_classes(data)
    found = evaluate(model, data, split, **how)
    assert isinstance(found, Evaluation)
    return found


def check_of_classes(data: ImageData) -> None:
    """Raise ValueError for data that has no accuracy of one class an image."""
    if data.meaning.task != "multiclass":
        raise ValueError(
            f"this compares accuracies of one class an image, and {data.name} has {data.meaning.task} labels: distil, "
            "prune, quantize and evaluate take them one by one"
        )


def judge(answers: Tensor, labels: Tensor, meaning: Labels) -> Quality:
    """What answers [N, K] are worth against labels of that meaning; those that say nothing are left out.

    Raises ValueError for answers that do not fit the labels, and for labels that are none of that meaning.
    """
    if meaning.task == "multiclass":
        known = meaning.known(labels)
        return score(answers[known], labels[known])
    meaning.check_fit(answers, labels)
    check_labels(labels, meaning, answers.shape[1])
    found, unlearned = metrics(answers, labels, meaning)
    loss = float(plain_loss(meaning)(answers, labels))
    return Measured(found, unlearned, len(labels), loss)


def score(logits: Tensor, labels: Tensor) -> Evaluation:
    """Evaluation of logits [N, K] against labels int64 [N].

    Raises ValueError for logits of fewer than two classes, which are always right, and labels outside 0..K-1.
    """
    if labels.is_floating_point():
        raise ValueError(
            f"an accuracy needs labels int64 [N], not {labels.dtype} {list(labels.shape)}"
        )
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(
            f"an accuracy needs logits [N, K] of two classes or more, not {list(logits.shape)}"
        )
    check_labels(labels, Labels(), logits.shape[1])
    correct = int((logits.argmax(1) == labels).sum())
    return Evaluation(correct, len(labels), float(cross_entropy(logits, labels)))


@dataclass(frozen=True)
class PairedChange:
    """How answers changed from one model to another on the same images.

    `gain` is the difference of the accuracies (-1..1) with its 95 % interval; `changed` counts the
    images on which the two models name different classes.
    """

    gain: float
    interval: tuple[float, float]
    changed: int
    count: int

    @property
    def certain(self) -> bool:
        """Whether the interval leaves out 0."""
        low, high = self.interval
        return low > 0 or high < 0


def paired_change(before: Tensor, after: Tensor, labels: Tensor) -> PairedChange:
    """Compare two models' logits [N, K] with labels int64 [N].

    The interval is that of Agresti and Min 2005 for matched pairs: Wald's after adding half an
    image to each of the four outcomes, sound when few answers changed.
    """
    right_before, right_after = before.argmax(1) == labels, after.argmax(1) == labels
    won = int((right_after & ~right_before).sum())
    lost = int((right_before & ~right_after).sum())
    count = len(labels)
    centre = (won - lost) / (count + 2)
    variance = (won + lost + 1) / (count + 2) - centre**2
    half = 1.96 * math.sqrt(variance / (count + 2))
    changed = int((before.argmax(1) != after.argmax(1)).sum())
    gain = (won - lost) / count
    return PairedChange(gain, (centre - half, centre + half), changed, count)


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
