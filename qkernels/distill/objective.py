"""What one training step minimises: the labels, a teacher's answers, or whatever else is asked for."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from qkernels.distill.label_loss import LabelLoss
from qkernels.distill.losses import mean_answer
from qkernels.modules.answers import logits_of

# (student logits, teacher logits, labels, temperature) -> scalar
SoftLoss = Callable[[Tensor, Tensor, Tensor | None, float], Tensor]
Regulariser = Callable[[Tensor], Tensor]  # student logits -> scalar


class StepLoss(NamedTuple):
    """The scalar `loss`, the student's `logits` [N, K], and the labels that they are counted against."""

    loss: Tensor
    logits: Tensor
    truth: Tensor


def frozen(teacher: nn.Module) -> nn.Module:
    """A twin of `teacher` in eval mode without gradients that shares its memory and leaves its flags alone."""
    shared: dict[int, Any] = {id(b): b for b in teacher.buffers()}
    shared |= {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in teacher.parameters()}
    for module in teacher.modules():
        for value in vars(module).values():
            if (
                isinstance(value, Tensor) and not value.is_leaf
            ):  # what the old weight_norm has computed
                shared.setdefault(id(value), value.detach())
            elif not isinstance(value, Tensor | dict) and not _copyable(value):
                shared[id(value)] = value  # a lock, a file: the twin uses the same one
    return copy.deepcopy(teacher, shared).eval()  # deepcopy takes what its memo holds


def _copyable(value: object) -> bool:
    if isinstance(value, bool | int | float | str | None):
        return True
    try:
        copy.deepcopy(value)
    except Exception:  # whatever an object says to being copied
        return False
    return True


class Objective(nn.Module):
    """Turns a batch into a `StepLoss`; called as objective(model, images, labels).

    Parameters registered here are trained together with the model and saved with the run. `repr` tells two objectives
    apart when a run is continued: name the settings in `extra_repr`.
    """

    needs_labels = True
    of_classes = True  # the model answers with logits of classes, and labels are some of them
    loss_falls = True  # a loss far above that of the first step means that the training fails

    def __init__(self, *teachers: nn.Module) -> None:
        """`teachers` are held `frozen`; they are no part of `parameters` or `state_dict`."""
        super().__init__()
        self.teachers = tuple(frozen(teacher) for teacher in teachers)

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor | None) -> StepLoss:
        raise NotImplementedError

    def shown(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """What validation shows the model, by which epochs are compared: the images as they are."""
        return images

    def check(self, model: nn.Module, images: Tensor, labels: Tensor | None) -> None:
        """Called once before training, the model in eval mode, no gradients: ValueError for what does not fit."""


class LabelObjective(Objective):
    """A loss with the labels: cross-entropy, unless another is given."""

    def __init__(self, hard: LabelLoss | None = None) -> None:
        super().__init__()
        self.hard = hard or LabelLoss()

    def extra_repr(self) -> str:
        return repr(self.hard)

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor | None) -> StepLoss:
        assert labels is not None
        logits = logits_of(model, images)
        return StepLoss(self.hard(logits, labels), logits, labels)

    def check(self, model: nn.Module, images: Tensor, labels: Tensor | None) -> None:
        self(model, images, labels)


class SoftObjective(Objective):
    """alpha * soft(student, teacher, labels, T) + (1 - alpha) * hard(student, labels), all on logits.

    Of several teachers the student learns `mean_answer`. Without labels only the soft loss remains, and the student is
    counted against the teachers' answers.
    """

    def __init__(
        self,
        *teachers: nn.Module,
        soft: SoftLoss,
        name: str,
        alpha: float,
        temperature: float,
        hard: LabelLoss | None = None,
        weights: Sequence[float] | None = None,
        needs_labels: bool = False,
    ) -> None:
        """`name` is that of `soft`; `weights` has one a teacher; `hard` is cross-entropy unless another is given.

        Raises ValueError for an alpha outside [0, 1].
        """
        super().__init__(*teachers)
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], not {alpha}")
        self.soft, self.name, self.alpha, self.temperature = soft, name, alpha, temperature
        self.hard, self.weights = hard or LabelLoss(), weights
        self.needs_labels = needs_labels

    def extra_repr(self) -> str:
        return ", ".join(
            f"{key}={getattr(self, key)!r}"
            for key in ("name", "alpha", "temperature", "hard", "weights")
        )

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor | None) -> StepLoss:
        with torch.no_grad():
            answers = [logits_of(teacher, images) for teacher in self.teachers]
            guide = mean_answer(
                answers,
                temperature=self.temperature,
                weights=self.weights,
                task=self.hard.meaning.task,
            )
        logits = logits_of(model, images)
        soft = self.soft(logits, guide, labels, self.temperature)
        if labels is None:
            return StepLoss(soft, logits, self.hard.meaning.of_answers(guide))
        hard = self.hard(logits, labels)
        return StepLoss(self.alpha * soft + (1 - self.alpha) * hard, logits, labels)

    def check(self, model: nn.Module, images: Tensor, labels: Tensor | None) -> None:
        self(model, images, labels)
