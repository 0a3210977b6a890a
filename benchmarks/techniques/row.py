"""One row of the table of techniques: what is run, and where its code, test and example are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from qkernels.data import ImageData


@dataclass(frozen=True)
class Setting:
    """What every row shares, so that rows compare: data, a trained teacher, and the student trained alone."""

    data: ImageData
    teacher: nn.Module
    student: Callable[[], nn.Module]  # a fresh, seeded student of the table's one architecture
    alone: nn.Module  # that student trained on labels for `epochs`
    epochs: int  # what one training may take
    run_dir: Path  # this row's own folder; whatever is in it is continued


@dataclass(frozen=True)
class Outcome:
    """The float model of a row (None where there is none) and its int8 form; the table measures both itself."""

    float_model: nn.Module | None
    int8_model: nn.Module | None
    note: str = ""  # one short clause: what else there is to see, with figures
    figures: dict[str, float] = field(default_factory=dict)  # robust accuracy, MACs, ...


@dataclass(frozen=True)
class Row:
    """`run` is seeded and resumable. `code`, `test` and `example` are paths from the repository's root."""

    name: str
    technique: tuple[str, ...]  # ids of the tutorials' list, such as S1-1
    code: str
    test: str
    example: str
    run: Callable[[Setting], Outcome]
