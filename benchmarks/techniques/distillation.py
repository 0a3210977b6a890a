"""Rows of the table: distillation, one loss at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from qkernels.data import Split, hold_out
from qkernels.distill import (
    CachedTeacher,
    DeepSupervision,
    LabelObjective,
    Regularised,
    confidence_penalty,
    soft_objective,
)
from qkernels.pipeline import create_model
from techniques.row import Outcome, Row, Setting

# Layers of the student and of the teacher have one name each: the ends of the three stages.
STAGES, LAST = "layer1,layer2,layer3", "layer3"


def outcome(setting: Setting, *, note: str = "", **how: object) -> Outcome:
    """Train a fresh student and quantize it."""
    student = setting.fit(setting.student(), **how)
    return Outcome(student, setting.int8(student), note)


def cached(setting: Setting) -> CachedTeacher:
    """The teacher, asked about the batches of an epoch once for all rows."""
    return CachedTeacher(setting.teacher, setting.run_dir.parent / "answers.sqlite")


def by_logits(loss: str, **changes: object) -> Callable[[Setting], Outcome]:
    return lambda setting: outcome(
        setting, teacher=cached(setting), config=setting.training(loss=loss, **changes)
    )


def by_features(loss: str, features: str) -> Callable[[Setting], Outcome]:
    return lambda setting: outcome(
        setting, teacher=setting.teacher, config=setting.training(loss=loss, features=features)
    )


def heads(setting: Setting) -> Outcome:
    student = setting.student()
    objective = DeepSupervision(
        soft_objective("hinton", setting.training(), cached(setting)),
        student,
        ["layer1", "layer2"],
        image_shape=setting.data.image_shape,
        num_classes=setting.data.num_classes,
    )
    trained = setting.fit(student, objective=objective)
    return Outcome(trained, setting.int8(trained), "the heads are left behind")


def two_teachers(setting: Setting) -> Outcome:
    """The second one is a deeper student, itself distilled from the first."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setting.seed)
        fresh = create_model("resnet14", setting.data)
    second = setting.fit(fresh, "second", teacher=cached(setting))
    teachers = cached(setting), CachedTeacher(second, setting.run_dir / "second.sqlite")
    objective = soft_objective("hinton", setting.training(), *teachers, weights=[2, 1])
    return outcome(setting, objective=objective, note="weights 2 : 1, the second a ResNet-14")


def unlabelled(setting: Setting) -> Outcome:
    bare = setting.data.with_train(setting.data.train.unlabelled())
    return outcome(setting, data=bare, teacher=cached(setting), note="no label was seen")


def few_labels(setting: Setting) -> Outcome:
    """What labels alone can do with as few: the counterpart of the row below."""
    return outcome(
        setting, note="a tenth of the images, as many steps", **few(setting, tenth(setting))
    )


def few_images(setting: Setting) -> Outcome:
    note = "a tenth of the images, labelled by the teacher, as many steps"
    how = few(setting, tenth(setting).unlabelled())
    return outcome(setting, teacher=cached(setting), note=note, **how)


def tenth(setting: Setting) -> Split:
    return hold_out(setting.data.train, 0.1, seed=setting.seed)[1]


def few(setting: Setting, images: Split) -> dict[str, Any]:
    """As many steps on a tenth of the images: ten times the epochs."""
    epochs = {"epochs": 10 * setting.epochs, "warmup_epochs": setting.epochs}
    rarely = {"eval_every": 10, "checkpoint_every": 10}
    return {"data": setting.data.with_train(images), "config": setting.training(**epochs, **rarely)}


def regularised(setting: Setting) -> Outcome:
    objective = Regularised(LabelObjective(), confidence_penalty, 0.1)
    return outcome(setting, objective=objective, note="no teacher; lambda 0.1")


def row(
    name: str, ids: tuple[str, ...], code: str, test: str, run: Callable[[Setting], Outcome]
) -> Row:
    code, test = f"qkernels/distill/{code}.py", f"tests/distill/test_{test}.py"
    return Row(name, ids, code, test, "docs/distilling.md", run)


BASIC = ("S0-1", "S0-2", "S0-6")
ROWS = [
    row("Hinton (T = 4, alpha = 0.9)", (*BASIC, "S3-13"), "losses", "losses", by_logits("hinton")),
    row(
        "soft cross-entropy (T = 1, alpha = 0.5)",
        (*BASIC, "S3-13"),
        "losses",
        "losses",
        by_logits("soft_cross_entropy", temperature=1.0, alpha=0.5),
    ),
    row(
        "logit MSE (alpha = 0.1)", ("S1-5",), "losses", "losses", by_logits("logit_mse", alpha=0.1)
    ),
    row("DKD", ("S1-5",), "losses", "losses", by_logits("dkd", alpha=0.5)),
    row("FitNets hints", ("S1-5",), "features", "features", by_features("fitnets", "layer2")),
    row("attention transfer", ("S1-5",), "features", "features", by_features("attention", STAGES)),
    row("RKD", ("S1-5",), "features", "features", by_features("rkd", LAST)),
    row("CRD (in-batch)", ("S1-5",), "features", "features", by_features("crd", LAST)),
    row("auxiliary heads, with Hinton", ("S2-14",), "composed", "objective", heads),
    row("two teachers", ("S1-5",), "objective", "objective", two_teachers),
    row("unlabelled images", ("S1-4",), "trainer", "trainer", unlabelled),
    row("few images, labels alone", ("S4-4",), "trainer", "trainer", few_labels),
    row("few images, the teacher's labels", ("S1-4", "S4-4"), "trainer", "trainer", few_images),
    row("confidence penalty, no teacher", ("S2-14",), "composed", "objective", regularised),
]
