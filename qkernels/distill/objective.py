"""What one training step minimises: the labels, a teacher's answers, or whatever else is asked for."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from qkernels.distill.losses import hinton_loss


class StepLoss(NamedTuple):
    """The scalar `loss`, the student's `logits` [N, K], and the answers int64 [N] that they are counted against."""

    loss: Tensor
    logits: Tensor
    truth: Tensor


class Objective(nn.Module):
    """Turns a batch into a `StepLoss`; called as objective(model, images, labels).

    Parameters registered here are trained together with the model and saved with the run.
    """

    needs_labels = True

    def __init__(self, *teachers: nn.Module) -> None:
        """`teachers` are copied, frozen and kept in eval mode; they are no part of `parameters` or `state_dict`."""
        super().__init__()
        self.teachers = tuple(copy.deepcopy(t).eval().requires_grad_(False) for t in teachers)

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor | None) -> StepLoss:
        raise NotImplementedError


class LabelObjective(Objective):
    """Cross-entropy with the labels."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor | None) -> StepLoss:
        assert labels is not None
        logits = model(images)
        loss = cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)
        return StepLoss(loss, logits, labels)


class HintonObjective(Objective):
    """`hinton_loss` with one teacher; without labels the student is counted against the teacher's answers."""

    needs_labels = False

    def __init__(
        self, teacher: nn.Module, temperature: float, alpha: float, label_smoothing: float = 0.0
    ) -> None:
        super().__init__(teacher)
        self.settings = {"temperature": temperature, "alpha": alpha, "label_smoothing": label_smoothing}  # fmt: skip

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor | None) -> StepLoss:
        with torch.no_grad():
            guide = self.teachers[0](images)
        logits = model(images)
        loss = hinton_loss(logits, guide, labels, **self.settings)
        return StepLoss(loss, logits, guide.argmax(1) if labels is None else labels)
