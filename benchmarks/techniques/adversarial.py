"""Rows of the table: training under attack, with and without a teacher.

Each starts from the student trained alone and spends half its epochs, since an attacked epoch costs several plain ones.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

from qkernels.adversarial import ARD, RSLAD, AdversarialTraining, Ball, robustness
from qkernels.distill import Objective
from techniques.row import Outcome, Row, Setting

EPS, STEPS, ATTACK_STEPS, ATTACKED_IMAGES = 8 / 255, 3, 20, 1000
Make = Callable[[Setting, Ball], Objective]


def run(setting: Setting, make: Make) -> Outcome:
    data, ball = setting.data, Ball.of(setting.data, EPS)
    epochs = max(1, setting.epochs // 2)
    config = setting.training(epochs=epochs, warmup_epochs=0, lr=0.02, clip_grad_norm=5.0)
    student = copy.deepcopy(setting.alone)
    student = setting.fit(student, objective=make(setting, ball), config=config)
    int8 = setting.int8(student)
    options = {"steps": ATTACK_STEPS, "limit": ATTACKED_IMAGES, "progress": True}
    row = robustness(student, data, ball, int8=int8, **options).row(f"PGD-{ATTACK_STEPS}")
    plain = robustness(setting.alone, data, ball, **options).row(f"PGD-{ATTACK_STEPS}")
    assert row.int8 is not None
    figures = {
        "robust float": row.float32.accuracy,
        "robust int8": row.int8.accuracy,
        "robust alone": plain.float32.accuracy,
    }
    note = f"PGD-{ATTACK_STEPS} at eps 8/255, int8 through its float twin"
    return Outcome(student, int8, note, figures)


def _row(name: str, technique: str, make: Make) -> Row:
    code, test = "qkernels/adversarial/objectives.py", "tests/adversarial/test_robust_training.py"
    return Row(name, (technique,), code, test, "docs/adversarial.md", partial(run, make=make))


ROWS = [
    _row("adversarial training", "S3-14", lambda s, ball: AdversarialTraining(ball, steps=STEPS)),
    _row("ARD", "S3-15", lambda s, ball: ARD(s.teacher, ball, steps=STEPS)),
    _row("RSLAD", "S3-15", lambda s, ball: RSLAD(s.teacher, ball, steps=STEPS)),
]
