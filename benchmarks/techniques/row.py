"""One row of the table of techniques: what is run, and where its code, test and example are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import qkernels
from qkernels.data import ImageData
from qkernels.distill import TrainConfig, train
from qkernels.pipeline import calibration_batches


@dataclass(frozen=True)
class Setting:
    """What every row shares, so that rows compare: data, a trained teacher, and the student trained alone."""

    data: ImageData
    teacher: nn.Module
    student: Callable[[], nn.Module]  # a fresh, seeded student of the table's one architecture
    alone: nn.Module  # that student trained on labels for `epochs`
    epochs: int  # what one training may take
    run_dir: Path  # this row's own folder; whatever is in it is continued
    seed: int = 0  # of the batches; rows of one seed see the same ones

    def training(self, **changes: Any) -> TrainConfig:
        """The settings of every training in the table, with what a row must have otherwise."""
        shared = {
            "epochs": self.epochs,
            "warmup_epochs": 0.1 * self.epochs,
            "weight_decay": 5e-4,
            "precision": "bf16",
            "channels_last": True,
            "seed": self.seed,
        }
        return TrainConfig(**{**shared, **changes})

    def fit(self, model: nn.Module, folder: str = "training", **how: Any) -> nn.Module:
        """Train `model` in `run_dir/folder` as `train(**how)` does, by `training()` unless told otherwise."""
        config = how.pop("config", self.training())
        train(model, how.pop("data", self.data), config, run_dir=self.run_dir / folder, **how)
        return model.eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def calibration(self, images: int = 512) -> list[Tensor]:
        """Batches of training images, the same at every call."""
        return list(calibration_batches(self.data, images, self.seed))

    def int8(self, model: nn.Module) -> nn.Module:
        """`model` by the default static int8, calibrated on 512 training images."""
        return qkernels.quantize(model, calibration=self.calibration())

    def beside(self, name: str) -> Setting:
        """The same in a folder that the rows of a seed share."""
        return replace(self, run_dir=self.run_dir.parent / name)


@dataclass(frozen=True)
class Outcome:
    """The float model of a row (None where there is none) and its int8 form; the table measures both itself."""

    float_model: nn.Module | None
    int8_model: nn.Module | None
    note: str = ""  # one short clause: what else there is to see, with figures
    figures: dict[str, float] = field(default_factory=dict)  # shares: robust accuracy, zeros, ...


@dataclass(frozen=True)
class Pointer:
    """Where a technique is: `code`, `test` and `example` are paths from the repository's root."""

    name: str
    technique: tuple[str, ...]  # ids of the tutorials' list, such as S1-1
    code: str
    test: str
    example: str


@dataclass(frozen=True)
class Row(Pointer):
    """One that the table has figures of; `run` is seeded and resumable."""

    run: Callable[[Setting], Outcome]
