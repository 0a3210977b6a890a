"""What the labels of a data set mean, and so what an answer to them is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Task = Literal["multiclass", "multilabel", "regression"]


@dataclass(frozen=True)
class Labels:
    """The meaning of labels.

    multiclass: int64 [N], one of K classes each; answers are logits [N, K].
    multilabel: float [N, K] of 0 and 1, any number of K classes; answers are logits [N, K].
    regression: float [N, K]; answers are values [N, K].

    Attributes:
        task: one of the three.
        ignore: the label that says nothing, an image's class or one entry of a multilabel row; None: all count.
    """

    task: Task = "multiclass"
    ignore: int | None = None

    def known(self, labels: Tensor) -> Tensor:
        """Which labels count, bool in their shape."""
        if self.ignore is None or self.task == "regression":
            return torch.ones_like(labels, dtype=torch.bool)
        return labels != self.ignore

    def right(self, answers: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(how many labels an answer hits, how many it could), scalars; (0, 0) where there are no classes to hit."""
        if self.task == "regression":
            return answers.new_zeros(()), answers.new_zeros(())
        known = self.known(labels)
        found = answers.argmax(1) if self.task == "multiclass" else (answers > 0).to(labels.dtype)
        return ((found == labels) & known).sum(), known.sum()

    def of_answers(self, answers: Tensor) -> Tensor:
        """The labels that answers stand for: what a student is counted against where there are no labels."""
        if self.task == "multiclass":
            return answers.argmax(1)
        return (answers > 0).to(answers.dtype) if self.task == "multilabel" else answers

    def chance(self, labels: Tensor | None, classes: int) -> float:
        """The accuracy of always giving the most frequent answer (of several classes: as if all were equally so)."""
        if self.task == "multiclass" or labels is None:
            return 1 / max(1, classes)
        known = self.known(labels)
        share = (labels * known).sum(0) / known.sum(0).clamp(min=1)
        return float(torch.maximum(share, 1 - share).mean())

    def check_fit(self, answers: Tensor, labels: Tensor) -> None:
        """Raise ValueError for answers [N, ...] that cannot be compared with these labels."""
        fits = (
            answers.ndim == 2 and answers.shape[1] > 1 and labels.ndim == 1
            if self.task == "multiclass"
            else answers.shape == labels.shape
        )
        if not fits:
            wanted = (
                "[N, K] of two classes or more" if self.task == "multiclass" else list(labels.shape)
            )
            raise ValueError(
                f"answers {list(answers.shape)} do not fit {self.task} labels {list(labels.shape)}: the model must "
                f"return {wanted}"
            )


def check_labels(labels: Tensor, meaning: Labels, classes: int) -> None:
    """Raise ValueError for the first label that does not mean what `meaning` says, of so many classes."""
    if meaning.task == "multiclass":
        wrong = ((labels < 0) | (labels >= classes)) & meaning.known(labels)
        what = f"none of 0..{classes - 1}, the model's classes"
    elif meaning.task == "multilabel":
        wrong, what = (labels != 0) & (labels != 1) & meaning.known(labels), "neither 0 nor 1"
    else:
        wrong, what = ~labels.isfinite(), "not finite"
    if wrong.any():
        place = wrong.nonzero()[0].tolist()
        value = labels[tuple(place)].item()
        at = f"image {place[0]}" + (f", output {place[1]}," if len(place) > 1 else "")
        raise ValueError(f"label {value:g} of {at} is {what}")
