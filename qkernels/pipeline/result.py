"""What a pipeline has found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from qkernels.distill import EpochRecord
from qkernels.evaluate import Evaluation, PairedChange
from qkernels.measuring.speed import Speeds
from qkernels.pipeline.config import PipelineConfig
from qkernels.quantization import LayerError, QuantReport


@dataclass(frozen=True)
class Row:
    """One model of the report; `change` compares its answers with those of the row `against`.

    `file_bytes` are those of its weights file on disk, `program_bytes` those of its program, where one was written.
    An int8 row has the parameters and multiply-adds of the float model it was made of.
    """

    name: str
    precision: Literal["fp32", "int8"]
    accuracy: Evaluation
    file_bytes: int
    parameters: int
    macs: int
    speeds: Speeds
    against: str | None = None
    change: PairedChange | None = None
    program_bytes: int | None = None


@dataclass(frozen=True)
class PipelineResult:
    """Everything a report shows. `curves`, `quantization` and `layers` are by name of the row."""

    config: PipelineConfig
    machine: dict[str, Any]  # see `describe_machine`
    data: dict[str, Any]  # name, image_shape, classes and the sizes of train, val and test
    rows: list[Row]
    curves: dict[str, tuple[EpochRecord, ...]]
    quantization: dict[str, QuantReport]
    layers: dict[str, list[LayerError]]  # on test images

    def at_chance(self) -> list[str]:
        """A sentence for each float model that has learned no more than chance would know."""
        chance = 1 / max(1, len(self.data["classes"]))
        return [
            f"{row.name}: {row.accuracy.accuracy:.2%} is no more than chance, {chance:.2%} of "
            f"{len(self.data['classes'])} classes; nothing was learned, more epochs or another lr may help"
            for row in self.rows
            if row.precision == "fp32" and row.accuracy.interval[0] <= chance
        ]

    def row(self, name: str) -> Row:
        """The row of this name; KeyError if there is none."""
        return next(row for row in self.rows if row.name == name)
