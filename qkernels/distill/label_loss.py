"""What a student learns from labels, by name and by what the labels mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    huber_loss,
    mse_loss,
)

from qkernels.data.task import Labels, Task
from qkernels.distill.losses import binary_focal_loss, focal_loss

if TYPE_CHECKING:
    from qkernels.data.image_data import ImageData
    from qkernels.distill.config import TrainConfig

DEFAULT: dict[Task, str] = {"multiclass": "cross_entropy", "multilabel": "bce", "regression": "mse"}


@dataclass(frozen=True)
class LabelLoss:
    """A scalar of answers float [N, K] and labels, computed in float32: the mean over all labels that count.

    Attributes:
        name: one of `LABEL_LOSSES` that knows the task.
        meaning: what the labels mean, and which of them says nothing.
        smoothing: share of each label spread over all classes.
        weights: one a class. multiclass: of the images of the class, and the mean is a weighted one; multilabel: of the
            class where it is there (torch's `pos_weight`).
        gamma: of focal losses.
        delta: of the Huber loss.
    """

    name: str = "cross_entropy"
    meaning: Labels = field(default_factory=Labels)
    smoothing: float = 0.0
    weights: tuple[float, ...] | None = None
    gamma: float = 2.0
    delta: float = 1.0

    def __post_init__(self) -> None:
        task = self.meaning.task
        if task not in LABEL_LOSSES[self.name]:
            known = ", ".join(name for name, tasks in LABEL_LOSSES.items() if task in tasks)
            raise ValueError(f"label_loss={self.name!r} is none of {task} labels: take {known}")
        if task == "regression" and (self.smoothing or self.weights):
            unused = "label_smoothing" if self.smoothing else "class_weights"
            raise ValueError(f"{unused} is of classes, and these labels are values: leave it out")
        if self.smoothing and self.name == "focal":
            raise ValueError("label_smoothing has no meaning in the focal loss: leave it out")

    def __call__(self, answers: Tensor, labels: Tensor) -> Tensor:
        """Raises ValueError for answers and labels that do not fit each other."""
        self.meaning.check_fit(answers, labels)
        if not self.meaning.known(labels).any():
            return answers.float().sum() * 0
        return LABEL_LOSSES[self.name][self.meaning.task](self, answers.float(), labels)

    def weights_like(self, answers: Tensor) -> Tensor | None:
        """The weights as a tensor [K]; ValueError if there are more or fewer than classes."""
        if self.weights is None:
            return None
        if len(self.weights) != answers.shape[1]:
            raise ValueError(
                f"class_weights has {len(self.weights)} values for {answers.shape[1]} classes"
            )
        return answers.new_tensor(self.weights)

    @property
    def ignore(self) -> int:
        """The class that says nothing, as torch has it."""
        return -100 if self.meaning.ignore is None else self.meaning.ignore


def label_loss(config: TrainConfig, data: ImageData | None = None) -> LabelLoss:
    """The loss that `config` asks for on the labels of `data` (None: one class an image).

    Raises ValueError for settings that do not go together, and for class_weights="balanced" without labels.
    """
    meaning = Labels() if data is None else data.meaning
    return LabelLoss(
        config.label_loss or DEFAULT[meaning.task],
        meaning,
        config.label_smoothing,
        _weights(config.class_weights, data),
        config.focal_gamma,
        config.huber_delta,
    )


def plain_loss(meaning: Labels) -> LabelLoss:
    """The loss that answers are compared by, whatever they were trained with."""
    return LabelLoss(DEFAULT[meaning.task], meaning)


def _weights(text: str, data: ImageData | None) -> tuple[float, ...] | None:
    if text != "balanced":
        return tuple(float(part) for part in text.split(",")) if text else None
    labels = None if data is None else data.train.labels
    if data is None or labels is None:
        raise ValueError("class_weights='balanced' counts labels: there are none")
    return balanced(labels, data.meaning, data.num_classes)


def balanced(labels: Tensor, meaning: Labels, classes: int) -> tuple[float, ...]:
    """Weights under which all classes count alike.

    multiclass: N / (K * count), scikit-learn's "balanced"; multilabel: absent / present, torch's advice for
    `pos_weight`. Raises ValueError naming a class that never occurs.
    """
    known = meaning.known(labels)
    if meaning.task == "multiclass":
        counts = torch.bincount(labels[known], minlength=classes)
        weights = counts.sum() / (classes * counts.double())
    else:
        counts = (labels * known).sum(0)
        weights = (known.sum(0) - counts).double() / counts
    if (counts == 0).any():
        missing = int((counts == 0).nonzero()[0])
        raise ValueError(f"class_weights='balanced': class {missing} never occurs in training")
    return tuple(weights.tolist())


def _cross_entropy(loss: LabelLoss, answers: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(
        answers,
        labels,
        loss.weights_like(answers),
        ignore_index=loss.ignore,
        label_smoothing=loss.smoothing,
    )


def _focal(loss: LabelLoss, answers: Tensor, labels: Tensor) -> Tensor:
    known = loss.meaning.known(labels)
    return focal_loss(
        answers[known], labels[known], gamma=loss.gamma, weights=loss.weights_like(answers)
    )


def _bce(loss: LabelLoss, answers: Tensor, labels: Tensor) -> Tensor:
    known, smooth = loss.meaning.known(labels), loss.smoothing
    each = binary_cross_entropy_with_logits(
        answers,
        labels * (1 - smooth) + smooth / 2,
        pos_weight=loss.weights_like(answers),
        reduction="none",
    )
    return each[known].mean()


def _binary_focal(loss: LabelLoss, answers: Tensor, labels: Tensor) -> Tensor:
    weights = loss.weights_like(answers)
    each = binary_focal_loss(answers, labels, gamma=loss.gamma, pos_weight=weights)
    return each[loss.meaning.known(labels)].mean()


def _mse(loss: LabelLoss, answers: Tensor, labels: Tensor) -> Tensor:
    return mse_loss(answers, labels.float())


def _huber(loss: LabelLoss, answers: Tensor, labels: Tensor) -> Tensor:
    return huber_loss(answers, labels.float(), delta=loss.delta)


Formula = Callable[[LabelLoss, Tensor, Tensor], Tensor]
# The names that TrainConfig.label_loss takes; put your own in.
LABEL_LOSSES: dict[str, dict[Task, Formula]] = {
    "cross_entropy": {"multiclass": _cross_entropy},
    "focal": {"multiclass": _focal, "multilabel": _binary_focal},
    "bce": {"multilabel": _bce},
    "mse": {"regression": _mse},
    "huber": {"regression": _huber},
}
