"""A student trained by what is at hand: labels, teachers, attacks, or a teacher alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qkernels.adversarial import RSLAD, AdversarialTraining, Ball, Robustness, robustness
from qkernels.data import ImageData
from qkernels.datafree import DAFL, Generator, ImageKind
from qkernels.datafree.batch_norm import has_statistics
from qkernels.distill import (
    CachedTeacher,
    Objective,
    TrainConfig,
    TrainResult,
    soft_objective,
    suitable_config,
    train,
)
from qkernels.distill.registry import SOFT_LOSSES
from qkernels.evaluate import Quality, evaluate
from qkernels.pipeline.architecture import (
    ModelChoice,
    create_model,
    describe_architecture,
    describe_data,
    open_float_model,
    open_model,
)
from qkernels.quantization import save

CHECKPOINT = "student.safetensors"  # in the run folder; it names its model
BATCH_NORM = 0.3  # weight of the teacher's statistics in what a generator learns
# Settings of losses that attacks and made images have none of: their own loss takes the place.
OF_A_LOSS = ("loss", "alpha", "features", "feature_weight", "label_smoothing")


@dataclass(frozen=True)
class Distillation:
    """What a student learns, and from whom.

    Attributes:
        student: its model; of weights that name theirs, none.
        student_weights: what it starts from: weights, or a checkpoint such as a pruned one.
        teachers: pairs of a weights file or checkpoint and its model; several teach their mean answer.
        cache: file that keeps the answers of a single teacher.
        adversarial: largest change of a pixel, 0..255, of attacks on every batch; 0: none.
        made_images: images of an epoch that a generator makes from the teacher alone; 0: the data's own.
    """

    student: ModelChoice
    student_weights: Path | None = None
    teachers: Sequence[tuple[Path, ModelChoice]] = ()
    cache: Path | None = None
    adversarial: float = 0.0
    made_images: int = 0


@dataclass(frozen=True)
class Distilled:
    """The trained student, its training, and its accuracy on test images beside that of what it came from.

    `robust`: also under attack, for a student that was trained with attacks.
    """

    model: nn.Module
    training: TrainResult
    accuracy: Quality
    before: Quality | None = None
    checkpoint: Path = field(default=Path(CHECKPOINT))
    robust: Robustness | None = None


def distil_student(
    plan: Distillation,
    data: ImageData,
    run: Path,
    settings: Mapping[str, Any],
    *,
    resume: bool = True,
    progress: bool = True,
) -> Distilled:
    """Train a student as `plan` says, with the settings of `TrainConfig` that are given and suitable others.

    The folder `run` keeps the run, and the student as a checkpoint. Raises ValueError for parts of a plan that do not
    go together, and as `train`.
    """
    _check(plan, data, settings)
    guides = [open_model(path, data, choice)[0].eval() for path, choice in plan.teachers]
    if plan.cache is not None:
        guides = [CachedTeacher(guides[0], plan.cache)]
    torch.manual_seed(int(settings.get("seed", 0)))
    model, architecture = _student(plan, data)
    before = evaluate(model, data) if plan.student_weights is not None else None
    images = _made(plan, data) if plan.made_images else data
    if plan.made_images:  # one rate has to suit student and generator
        settings = {"optimizer": "adamw", **settings}
    config = suitable_config(images, model, settings, trained=plan.student_weights is not None)
    objective = _objective(plan, data, config, guides)
    teacher = guides[0] if guides and objective is None else None
    result = train(
        model, images, config, teacher=teacher, objective=objective, run_dir=run, resume=resume,
        extend=True, progress=progress,
    )  # fmt: skip
    save(model, run / CHECKPOINT, architecture=architecture, extra=describe_data(data))
    accuracy = evaluate(model, data, progress=progress)
    robust = None
    if plan.adversarial:
        robust = robustness(model, data, _ball(plan, data), limit=1000, progress=progress)
    return Distilled(model, result, accuracy, before, run / CHECKPOINT, robust)


def _check(plan: Distillation, data: ImageData, settings: Mapping[str, Any]) -> None:
    if plan.cache is not None and len(plan.teachers) != 1:
        raise ValueError("--teacher-cache keeps the answers of one --teacher: give one")
    if plan.made_images and len(plan.teachers) != 1:
        raise ValueError("images can only be made from one teacher: give one --teacher-weights")
    if plan.made_images and plan.adversarial:
        raise ValueError("attacks on made images are no known technique: leave one of the two out")
    if plan.adversarial and len(plan.teachers) > 1:
        raise ValueError("attacks take one teacher or none")
    if plan.made_images and plan.cache is not None:
        raise ValueError(
            "--teacher-cache keeps answers, and images are made from gradients: leave one of the two out"
        )
    own = "--adversarial" if plan.adversarial else "--made-images" if plan.made_images else None
    if own is None:
        return
    for name in OF_A_LOSS:
        if name in settings:
            raise ValueError(f"{own} has a loss of its own: leave --{name.replace('_', '-')} out")
    if data.meaning.task != "multiclass":
        raise ValueError(
            f"{own} is for one class an image, and {data.name} has {data.meaning.task} labels"
        )
    if data.train.normalised:
        raise ValueError(
            f"{own} needs pixels, and {data.name} gives inputs that are normalised already: let its data set return "
            "uint8 or pictures, with --mean and --std"
        )


def _student(plan: Distillation, data: ImageData) -> tuple[nn.Module, dict[str, Any]]:
    if plan.student_weights is not None:
        model, architecture = open_float_model(plan.student_weights, data, plan.student)
        return model.requires_grad_(True), architecture
    name = plan.student.name
    assert name is not None
    arguments = plan.student.arguments
    model = create_model(name, data, None, arguments)
    return model, describe_architecture(name, data, None, arguments)


def _objective(
    plan: Distillation, data: ImageData, config: TrainConfig, guides: list[nn.Module]
) -> Objective | None:
    """None where `train` itself makes it of the teacher or the labels."""
    if plan.made_images:
        weight = BATCH_NORM if has_statistics(guides[0]) else 0.0
        generator = Generator(ImageKind.of(data))
        return DAFL(guides[0], generator, batch_norm=weight, temperature=config.temperature)
    if plan.adversarial:
        ball = _ball(plan, data)
        return RSLAD(guides[0], ball) if guides else AdversarialTraining(ball)
    if len(guides) > 1:
        if config.loss not in SOFT_LOSSES:
            raise ValueError(
                f"loss={config.loss!r} compares features of one teacher, not of {len(guides)}"
            )
        return soft_objective(config.loss, config, *guides, data=data)
    return None


def _ball(plan: Distillation, data: ImageData) -> Ball:
    return Ball.of(data, plan.adversarial / 255)


def _made(plan: Distillation, data: ImageData) -> ImageData:
    """Placeholders, as many as images are to be made in an epoch; the data's own validate, and teach nothing."""
    kind = ImageKind.of(data)
    made = kind.data(kind.placeholders(plan.made_images))
    return replace(made, val=data.val, class_names=data.class_names)
