"""Ways to learn from a teacher, by name: what `TrainConfig.loss` chooses from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor, nn

from qkernels.distill.features import (
    Attention,
    Connector,
    Contrast,
    FeatureObjective,
    Hint,
    Relations,
)
from qkernels.distill.label_loss import label_loss
from qkernels.distill.losses import (
    binary_hinton_loss,
    cosine_loss,
    dkd_loss,
    hinton_loss,
    logit_mse,
    soft_cross_entropy,
)
from qkernels.distill.objective import Objective, SoftLoss, SoftObjective

if TYPE_CHECKING:
    from qkernels.data.image_data import ImageData
    from qkernels.data.task import Task
    from qkernels.distill.config import TrainConfig

# (settings, teacher, student, data) -> objective
Builder = Callable[["TrainConfig", nn.Module, nn.Module, "ImageData"], Objective]


def _dkd(student: Tensor, teacher: Tensor, labels: Tensor | None, temperature: float) -> Tensor:
    if labels is None:
        raise ValueError("loss='dkd' needs labels: it parts the labelled class from the others")
    return dkd_loss(student, teacher, labels, temperature=temperature)


def _mse(s: Tensor, t: Tensor, labels: Tensor | None, temperature: float) -> Tensor:
    return logit_mse(s, t)


SOFT_LOSSES: dict[str, dict[Task, SoftLoss]] = {
    "hinton": {
        "multiclass": lambda s, t, labels, T: hinton_loss(s, t, temperature=T, alpha=1.0),
        "multilabel": lambda s, t, labels, T: binary_hinton_loss(s, t, temperature=T),
    },
    # Its gradient is Hinton's: the two differ by the entropy of the teacher alone.
    "soft_cross_entropy": {
        "multiclass": lambda s, t, labels, T: (
            T**2 * soft_cross_entropy(s, (t.float() / T).softmax(1), temperature=T)
        )
    },
    "logit_mse": {"multiclass": _mse, "multilabel": _mse, "regression": _mse},
    "cosine": {"regression": lambda s, t, labels, T: cosine_loss(s, t)},
    "dkd": {"multiclass": _dkd},
}
# The weights are those of the papers or, for the mean forms, of Tian et al. 2020 (1910.10699).
CONNECTORS: dict[str, tuple[Connector, float]] = {
    "fitnets": (Hint, 100.0),
    "attention": (Attention, 1000.0),
    "rkd": (Relations, 25.0),
    "crd": (Contrast, 0.8),
}


def suitable_soft_loss(task: Task) -> str:
    """The loss on a teacher's answers to start with."""
    return "logit_mse" if task == "regression" else "hinton"


def soft_objective(
    name: str,
    config: TrainConfig,
    *teachers: nn.Module,
    weights: Sequence[float] | None = None,
    data: ImageData | None = None,
) -> SoftObjective:
    """The logit loss `name` with the settings of `config`; of several teachers, their weighted `mean_answer`.

    `data` says what its labels mean; None: one class an image. Raises ValueError for a loss that does not know them.
    """
    hard = label_loss(config, data)
    task = hard.meaning.task
    if task not in SOFT_LOSSES[name]:
        known = ", ".join(other for other, tasks in SOFT_LOSSES.items() if task in tasks)
        raise ValueError(f"loss={name!r} is none of {task} answers: take {known}")
    return SoftObjective(
        *teachers,
        soft=SOFT_LOSSES[name][task],
        name=name,
        alpha=config.alpha,
        temperature=config.temperature,
        hard=hard,
        weights=weights,
        needs_labels=name == "dkd",
    )


def _soft(
    name: str, config: TrainConfig, teacher: nn.Module, student: nn.Module, data: ImageData
) -> Objective:
    return soft_objective(name, config, teacher, data=data)


def _feature(
    name: str,
    config: TrainConfig,
    teacher: nn.Module,
    student: nn.Module,
    data: ImageData,
) -> Objective:
    """The feature loss `name` beside Hinton's, or what suits the labels in its place."""
    connector, weight = CONNECTORS[name]
    if not config.features:
        names = ", ".join(part for part, _ in student.named_children())
        raise ValueError(
            f"loss={name!r} compares features: name layers of the student in features= ({names})"
        )
    pairs = [part.partition("=") for part in config.features.replace(" ", "").split(",")]
    if not all(mine for mine, _, _ in pairs):
        raise ValueError(f"features={config.features!r} has an empty name")
    return FeatureObjective(
        soft_objective(suitable_soft_loss(data.meaning.task), config, teacher, data=data),
        student,
        {mine: theirs or mine for mine, _, theirs in pairs},
        connector,
        image_shape=data.image_shape,
        weight=weight if config.feature_weight is None else config.feature_weight,
        seed=config.seed,
    )


OBJECTIVES: dict[str, Builder] = {  # put your own in, and `TrainConfig(loss=...)` knows it
    **{name: partial(_soft, name) for name in SOFT_LOSSES},
    **{name: partial(_feature, name) for name in CONNECTORS},
}
