"""Rows of the table: what a teacher gives when none of its images is at hand.

The generator's rows cost a training of the student several times over: most of it are passes through teacher and
generator.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

import qkernels
from qkernels.data import Batches
from qkernels.datafree import (
    DAFL,
    Generator,
    GeneratorObjective,
    ImageKind,
    InversionConfig,
    LabelVAE,
    invert,
)
from techniques.row import Outcome, Row, Setting

CALIBRATION = InversionConfig(images=128, steps=100, total_variation=3.0)
INVERTED = InversionConfig(images=512, steps=200, total_variation=3.0)
Make = Callable[[nn.Module, Generator], GeneratorObjective]


def generated(setting: Setting, make: Make) -> Outcome:
    """As many made-up images an epoch as there are real ones; the generator's own images calibrate."""
    kind = ImageKind.of(setting.data)
    objective = make(setting.teacher, Generator(kind, width=32))
    data = kind.data(kind.placeholders(len(setting.data.train)))
    config = setting.training(optimizer="adamw", lr=0.01, augment=False)
    student = setting.fit(setting.student(), data=data, objective=objective, config=config)
    return _outcome(setting, student, kind.batches(objective.sample(512)))


def inverted(setting: Setting) -> Outcome:
    """Epochs of the few inverted images, until they have made as many steps as the real ones do."""
    kind = ImageKind.of(setting.data)
    images = invert(setting.teacher, kind, INVERTED, run_dir=setting.run_dir / "images")
    epochs = max(1, setting.epochs * len(setting.data.train) // len(images))
    often = {"warmup_epochs": 0.1 * epochs, "checkpoint_every": max(1, epochs // setting.epochs)}
    data = kind.data(images, setting.data.augment)
    config = setting.training(epochs=epochs, **often)
    student = setting.fit(setting.student(), data=data, teacher=setting.teacher, config=config)
    return _outcome(setting, student, kind.batches(images))


def calibrated(setting: Setting) -> Outcome:
    kind = ImageKind.of(setting.data)
    images = invert(setting.alone, kind, CALIBRATION, run_dir=setting.run_dir / "images")
    int8 = qkernels.quantize(setting.alone, calibration=kind.batches(images))
    return Outcome(setting.alone, int8, f"ranges from {len(images)} images inverted from the model")


def _outcome(setting: Setting, student: nn.Module, calibration: Batches) -> Outcome:
    int8 = qkernels.quantize(student, calibration=calibration)
    return Outcome(student, int8, "no real image was seen, by int8 neither")


def _row(name: str, code: str, test: str, run: Callable[[Setting], Outcome]) -> Row:
    code, test = f"qkernels/datafree/{code}.py", f"tests/datafree/{test}.py"
    return Row(name, ("S2-13",), code, test, "docs/datafree.md", run)


ROWS = [
    _row("data-free: DAFL", "objectives", "test_generators", partial(generated, make=DAFL)),
    _row(
        "data-free: label VAE", "objectives", "test_generators", partial(generated, make=LabelVAE)
    ),
    _row("data-free: inversion", "inversion", "test_inversion", inverted),
    _row("calibrated without images", "inversion", "test_inversion", calibrated),
]
