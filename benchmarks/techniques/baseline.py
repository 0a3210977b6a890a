"""Rows of the table: where the others start from."""

from __future__ import annotations

from techniques.row import Outcome, Row, Setting


def teacher(setting: Setting) -> Outcome:
    return Outcome(setting.teacher, setting.int8(setting.teacher))


def alone(setting: Setting) -> Outcome:
    return Outcome(setting.alone, setting.int8(setting.alone))


WHERE = ("qkernels/distill/trainer.py", "tests/distill/test_trainer.py", "docs/distilling.md")
ROWS = [
    Row("teacher", ("S0-2",), *WHERE, teacher),
    Row("student alone", ("S0-2", "S0-3"), *WHERE, alone),
]
