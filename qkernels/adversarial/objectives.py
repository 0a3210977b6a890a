"""What a student learns when every batch is attacked first; for `qkernels.distill.train(objective=...)`.

The attack is PGD on the student as it stands, drawn from torch's generator, which the trainer seeds: a resumed run
sees the same images. `steps=1` is FGSM from a random start (Wong et al. 2020, 2001.03994), the cheap form: an epoch
costs `steps` more forward and backward passes. Accuracies of the history are those on attacked images, by which epochs
are compared too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from qkernels.adversarial.attack import pgd
from qkernels.adversarial.ball import Ball
from qkernels.distill.losses import hinton_loss
from qkernels.distill.objective import Objective, StepLoss
from qkernels.modules.answers import logits_of


class _AdversarialObjective(Objective):
    """An objective that attacks the student within `ball`, `steps` steps of `step` (see `pgd`)."""

    def __init__(
        self, ball: Ball, *teachers: nn.Module, steps: int = 10, step: float | None = None
    ) -> None:
        super().__init__(*teachers)
        self.ball, self.steps, self.step = ball, steps, step

    def attacked(
        self,
        model: nn.Module,
        images: Tensor,
        target: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        # Passes that no weight learns from are none of the process group's business.
        inner = model.module if isinstance(model, DistributedDataParallel) else model
        return pgd(
            inner,
            images,
            target,
            self.ball,
            steps=self.steps,
            step=self.step,
            generator=generator,
        )

    def shown(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Attacked images, from the same starts in every epoch.

        On clean ones accuracy falls while a model learns to withstand, and the best epoch would be the start (Rice et
        al. 2020, 2002.11569, choose by attacked ones).
        """
        return self.attacked(model, images, labels, torch.Generator().manual_seed(0))

    def extra_repr(self) -> str:
        return f"{self.ball}, steps={self.steps}, step={self.step}"


class AdversarialTraining(_AdversarialObjective):
    """Cross-entropy on attacked images: E max CE(f(x'), y) over x' in the ball.

    Madry et al. 2018 (1706.06083), equation 2.1. There is no teacher in it, and nothing is compressed by it.
    """

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor | None) -> StepLoss:
        assert labels is not None
        logits = logits_of(model, self.attacked(model, images, labels))
        return StepLoss(cross_entropy(logits.float(), labels), logits, labels)


class ARD(_AdversarialObjective):
    """alpha * T^2 * KL(t(x) || s(x')) + (1 - alpha) * CE(s(x), y), softened by T; x' raises CE(s(x'), y).

    Adversarially Robust Distillation, Goldblum et al. 2020 (1905.09747): the student must answer on
    attacked images what the teacher answers on clean ones. It inherits most from a teacher that is robust itself.
    """

    def __init__(
        self,
        teacher: nn.Module,
        ball: Ball,
        *,
        temperature: float = 4.0,
        alpha: float = 0.9,
        steps: int = 10,
        step: float | None = None,
    ) -> None:
        super().__init__(ball, teacher, steps=steps, step=step)
        self.temperature, self.alpha = temperature, alpha

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor | None) -> StepLoss:
        assert labels is not None
        guide = _answers(self.teachers[0], images)
        attacked, clean = _both(model, self.attacked(model, images, labels), images)
        soft = hinton_loss(attacked, guide, temperature=self.temperature, alpha=1.0)
        hard = cross_entropy(clean.float(), labels)
        return StepLoss(self.alpha * soft + (1 - self.alpha) * hard, attacked, labels)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, temperature={self.temperature}, alpha={self.alpha}"


class RSLAD(_AdversarialObjective):
    """alpha * KL(t(x) || s(x')) + (1 - alpha) * KL(t(x) || s(x)); x' raises KL(t(x) || s(x')).

    Robust Soft Label Adversarial Distillation, Zi et al. 2021 (2108.07969), with its weights 5/6 and 1/6:
    the teacher's answers replace the labels in the attack too, so unlabelled images do.
    """

    needs_labels = False

    def __init__(
        self,
        teacher: nn.Module,
        ball: Ball,
        *,
        alpha: float = 5 / 6,
        steps: int = 10,
        step: float | None = None,
    ) -> None:
        super().__init__(ball, teacher, steps=steps, step=step)
        self.alpha = alpha

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor | None) -> StepLoss:
        guide = _answers(self.teachers[0], images)
        moved = self.attacked(model, images, guide.float().softmax(1))
        attacked, clean = _both(model, moved, images)
        near = hinton_loss(attacked, guide, temperature=1.0, alpha=1.0)
        true = hinton_loss(clean, guide, temperature=1.0, alpha=1.0)
        loss = self.alpha * near + (1 - self.alpha) * true
        return StepLoss(loss, attacked, guide.argmax(1) if labels is None else labels)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, alpha={self.alpha}"


@torch.no_grad()
def _answers(teacher: nn.Module, images: Tensor) -> Tensor:
    return logits_of(teacher, images)


def _both(model: nn.Module, attacked: Tensor, clean: Tensor) -> tuple[Tensor, ...]:
    """Logits of both in one pass: batch norms see the mixture that they will serve."""
    return logits_of(model, torch.cat([attacked, clean])).chunk(2)
