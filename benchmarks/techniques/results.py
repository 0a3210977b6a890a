"""What is measured of a row, and its JSON form."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from qkernels.evaluate import paired_change, predict, score
from qkernels.measuring.speed import measure_speed
from qkernels.quantization.convert import stored_bytes
from techniques.row import Outcome, Setting


@dataclass(frozen=True)
class Measured:
    """One model on the test images; `gain` in accuracy (-1..1) with its 95 % interval, against another model.

    A float model is compared with the student alone, an int8 one with its float twin (without one, with the student
    alone). `ms` is the median of one image in the form to deploy (an int8 model: its program, where it is one); `ratio`
    the student's, alone and in float, in the same minute over it.
    """

    accuracy: float
    interval: tuple[float, float]
    gain: float
    gain_interval: tuple[float, float]
    bytes: int
    ms: float
    ratio: float


@dataclass(frozen=True)
class Result:
    """One row with one seed, or the `error` that ended it."""

    seed: int
    seconds: float
    float_model: Measured | None = None
    int8_model: Measured | None = None
    note: str = ""
    figures: dict[str, float] = field(default_factory=dict)
    error: str = ""


def measure(outcome: Outcome, setting: Setting) -> dict[str, Measured | None]:
    """`float_model` and `int8_model` of a Result."""
    models = {"float_model": outcome.float_model, "int8_model": outcome.int8_model}
    present = {name: model for name, model in models.items() if model is not None}
    if not present:
        raise ValueError("the row gave no model to measure")
    return dict.fromkeys(models) | _measured(present, setting)


def _measured(models: dict[str, nn.Module], setting: Setting) -> dict[str, Measured]:
    data, labels = setting.data, setting.data.test.labels
    together = {"alone": setting.alone, **models}
    logits = {name: predict(model, data.batches("test", 250)) for name, model in together.items()}
    speeds = measure_speed(together, data.image_shape, seconds=0.3, rounds=6)
    found = {}
    for name, model in models.items():
        against = "float_model" if name == "int8_model" and "float_model" in models else "alone"
        change = paired_change(logits[against], logits[name], labels)
        right = score(logits[name], labels)
        found[name] = Measured(
            accuracy=right.accuracy,
            interval=right.interval,
            gain=change.gain,
            gain_interval=change.interval,
            bytes=stored_bytes(model),
            ms=speeds[name].all_threads.p50_ms,
            ratio=speeds["alone"].all_threads.p50_ms / speeds[name].all_threads.p50_ms,
        )
    return found


def save(path: Path, result: Result) -> None:
    """Write aside and rename, so that a killed run leaves no half result."""
    aside = path.with_suffix(".writing")
    aside.write_text(json.dumps(asdict(result), indent=1) + "\n")
    aside.replace(path)


def load(path: Path) -> Result | None:
    """The result in `path`, or None if there is none yet."""
    if not path.exists():
        return None
    values: dict[str, Any] = json.loads(path.read_text())
    for name in ("float_model", "int8_model"):
        if values[name] is not None:
            values[name] = Measured(**values[name])
    return Result(**values)
