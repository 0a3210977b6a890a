"""Rows of the table: what a teacher gives when none of its images is at hand.

The real test images only measure: no row sees them, nor any other real image, before its student is done.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from techniques.row import Outcome, Row, Setting
from torch import nn

import qkernels
from qkernels.datafree import (
    DAFL,
    Generator,
    GeneratorObjective,
    ImageKind,
    InversionConfig,
    LabelVAE,
    invert,
)
from qkernels.distill import TrainConfig, train
from qkernels.evaluate import evaluate

CALIBRATION = InversionConfig(images=128, steps=200)
INVERTED = InversionConfig(images=512, steps=200)
Make = Callable[[nn.Module, Generator], GeneratorObjective]


def generated(setting: Setting, make: Make) -> Outcome:
    """As many made-up images an epoch as there are real ones; the generator's own images calibrate."""
    kind = ImageKind.of(setting.data)
    objective, student = make(setting.teacher, Generator(kind)), setting.student()
    config = TrainConfig(epochs=setting.epochs, optimizer="adamw", lr=2e-3, augment=False)
    data = kind.data(kind.placeholders(len(setting.data.train)))
    train(student, data, config, objective=objective, run_dir=setting.run_dir)
    calibration = kind.batches(objective.sample(512))
    return _outcome(setting, student.eval(), calibration)


def inverted(setting: Setting) -> Outcome:
    kind = ImageKind.of(setting.data)
    images = invert(setting.teacher, kind, INVERTED, run_dir=setting.run_dir / "images")
    student, data = setting.student(), kind.data(images)
    # As many steps as the real images would have made.
    epochs = max(1, setting.epochs * len(setting.data.train) // len(images))
    config = TrainConfig(epochs=epochs, lr=0.05, checkpoint_every=max(1, epochs // 50))
    train(student, data, config, teacher=setting.teacher, run_dir=setting.run_dir / "student")
    return _outcome(setting, student.eval(), kind.batches(images))


def calibrated(setting: Setting) -> Outcome:
    kind = ImageKind.of(setting.data)
    images = invert(setting.alone, kind, CALIBRATION, run_dir=setting.run_dir)
    int8, _ = qkernels.quantize(setting.alone, calibration=kind.batches(images))
    return Outcome(setting.alone, int8, f"ranges from {len(images)} images inverted from the model")


def _outcome(setting: Setting, student: nn.Module, calibration: object) -> Outcome:
    int8, _ = qkernels.quantize(student, calibration=calibration)
    reached, real = (evaluate(m, setting.data).accuracy for m in (student, setting.alone))
    note = f"no image seen; {100 * (real - reached):.1f} points behind the student of real images"
    return Outcome(student, int8, note, {"behind_real": real - reached})


def _row(name: str, code: str, test: str, run: Callable[[Setting], Outcome]) -> Row:
    code, test = f"qkernels/datafree/{code}.py", f"tests/datafree/{test}.py"
    return Row(name, ("S2-13",), code, test, "docs/datafree.md", run)


ROWS = (
    _row("data-free: DAFL", "objectives", "test_objectives", partial(generated, make=DAFL)),
    _row(
        "data-free: label VAE", "objectives", "test_objectives", partial(generated, make=LabelVAE)
    ),
    _row("data-free: inversion", "inversion", "test_inversion", inverted),
    _row("calibrated without images", "inversion", "test_inversion", calibrated),
)
