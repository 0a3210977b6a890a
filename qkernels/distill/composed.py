"""Objectives around another objective: a regulariser, and heads at inner layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qkernels.distill.label_loss import LabelLoss
from qkernels.distill.objective import Objective, Regulariser, StepLoss
from qkernels.distill.taps import feature_shapes, pooled, tap


class Around(Objective):
    """An objective that adds something to the loss of `base`."""

    def __init__(self, base: Objective) -> None:
        super().__init__()
        self.base, self.teachers, self.needs_labels = base, base.teachers, base.needs_labels

    def shown(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return self.base.shown(model, images, labels)

    def check(self, model: nn.Module, images: Tensor, labels: Tensor | None) -> None:
        self(model, images, labels)


class Regularised(Around):
    """base + weight * regulariser(student logits), such as `confidence_penalty`; weight 0 is `base` to the bit."""

    def __init__(self, base: Objective, regulariser: Regulariser, weight: float) -> None:
        super().__init__(base)
        self.regulariser, self.weight = regulariser, weight

    def extra_repr(self) -> str:
        name = getattr(self.regulariser, "__name__", type(self.regulariser).__name__)
        return f"{name}, weight={self.weight}"

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor | None) -> StepLoss:
        step = self.base(model, images, labels)
        if self.weight == 0:
            return step
        return step._replace(loss=step.loss + self.weight * self.regulariser(step.logits))


class DeepSupervision(Around):
    """base + weight * mean loss of auxiliary heads at inner layers of the student.

    Lee et al. 2015 (1409.5185). A head is a global mean over the picture and a Linear layer; heads are trained with the
    student and left behind. They learn the labels, without labels the teachers' answers.
    """

    def __init__(
        self,
        base: Objective,
        student: nn.Module,
        layers: Sequence[str],
        *,
        image_shape: tuple[int, int, int],
        num_classes: int,
        weight: float = 0.3,
        seed: int = 0,
        hard: LabelLoss | None = None,
    ) -> None:
        """`layers` are module names of the student, `seed` that of the heads' weights.

        `hard` is their loss, cross-entropy unless another is given. Raises ValueError for unknown names.
        """
        super().__init__(base)
        self.layers, self.weight, self.hard = tuple(layers), weight, hard or LabelLoss()
        shapes = feature_shapes(student, self.layers, image_shape)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.heads = nn.ModuleList(nn.Linear(shape[0], num_classes) for shape in shapes)

    def extra_repr(self) -> str:
        return f"layers={self.layers}, weight={self.weight}"

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor | None) -> StepLoss:
        with tap(model, self.layers) as features:
            step = self.base(model, images, labels)
        answers = [
            head(pooled(features[name])) for head, name in zip(self.heads, self.layers, strict=True)
        ]
        losses = torch.stack([self.hard(one, step.truth) for one in answers])
        return step._replace(loss=step.loss + self.weight * losses.mean())
