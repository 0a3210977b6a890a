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
from qkernels.distill.losses import dkd_loss, hinton_loss, logit_mse, soft_cross_entropy
from qkernels.distill.objective import Objective, SoftLoss, SoftObjective

if TYPE_CHECKING:
    from qkernels.distill.config import TrainConfig

# (settings, teacher, student, shape of an image) -> objective
Builder = Callable[["TrainConfig", nn.Module, nn.Module, tuple[int, int, int]], Objective]


def _dkd(student: Tensor, teacher: Tensor, labels: Tensor | None, temperature: float) -> Tensor:
    if labels is None:
        raise ValueError("loss='dkd' needs labels: it parts the labelled class from the others")
    return dkd_loss(student, teacher, labels, temperature=temperature)


SOFT_LOSSES: dict[str, SoftLoss] = {
    "hinton": lambda s, t, labels, T: hinton_loss(s, t, temperature=T, alpha=1.0),
    # Its gradient is Hinton's: the two differ by the entropy of the teacher alone.
    "soft_cross_entropy": lambda s, t, labels, T: (
        T**2 * soft_cross_entropy(s, (t.float() / T).softmax(1), temperature=T)
    ),
    "logit_mse": lambda s, t, labels, T: logit_mse(s, t),
    "dkd": _dkd,
}
# The weights are those of the papers or, for the mean forms, of Tian et al. 2020 (1910.10699).
CONNECTORS: dict[str, tuple[Connector, float]] = {
    "fitnets": (Hint, 100.0),
    "attention": (Attention, 1000.0),
    "rkd": (Relations, 25.0),
    "crd": (Contrast, 0.8),
}


def soft_objective(
    name: str, config: TrainConfig, *teachers: nn.Module, weights: Sequence[float] | None = None
) -> SoftObjective:
    """The logit loss `name` with the settings of `config`; of several teachers, their weighted `mean_answer`."""
    return SoftObjective(
        *teachers,
        soft=SOFT_LOSSES[name],
        name=name,
        alpha=config.alpha,
        temperature=config.temperature,
        label_smoothing=config.label_smoothing,
        weights=weights,
        needs_labels=name == "dkd",
    )


def _soft(
    name: str, config: TrainConfig, teacher: nn.Module, student: nn.Module, shape: object
) -> Objective:
    return soft_objective(name, config, teacher)


def _feature(
    name: str,
    config: TrainConfig,
    teacher: nn.Module,
    student: nn.Module,
    shape: tuple[int, int, int],
) -> Objective:
    """Hinton's loss and the feature loss `name`."""
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
        soft_objective("hinton", config, teacher),
        student,
        {mine: theirs or mine for mine, _, theirs in pairs},
        connector,
        image_shape=shape,
        weight=weight if config.feature_weight is None else config.feature_weight,
        seed=config.seed,
    )


OBJECTIVES: dict[str, Builder] = {  # put your own in, and `TrainConfig(loss=...)` knows it
    **{name: partial(_soft, name) for name in SOFT_LOSSES},
    **{name: partial(_feature, name) for name in CONNECTORS},
}
