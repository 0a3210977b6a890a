"""Tries combinations from the cheapest on, and keeps what pays."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import qkernels
from qkernels import models, prune, recovery
from qkernels.advise.advice import Advice, Trial
from qkernels.data import ImageData
from qkernels.distill import TrainConfig, suitable_config, train
from qkernels.evaluate import Evaluation, accuracy_of
from qkernels.measuring.costs import count_macs
from qkernels.measuring.speed import Form, deployed
from qkernels.measuring.timing import time_in_turns
from qkernels.models.channels import Sizes
from qkernels.pipeline import calibration_batches
from qkernels.quantization.convert import stored_bytes
from qkernels.quantization.sensitivity import mix
from qkernels.utils.progress import progress as progress_bar

SHARES = (0.25, 0.4, 0.55, 0.7)  # of the multiply-adds, to prune


def advise(
    model: nn.Module,
    data: ImageData,
    *,
    floor: float,
    latency_ms: float | None = None,
    run_dir: str | Path,
    config: TrainConfig | Mapping[str, Any] | None = None,
    shares: Sequence[float] = SHARES,
    students: Mapping[str, nn.Module] | None = None,
    images: int = 512,
    seed: int = 0,
    progress: bool = True,
) -> Advice:
    """Search int8, recovered, distilled and pruned forms of a model for one that meets a floor and a latency.

    Int8 comes first, then recovery or a mix of int8 and float where accuracy was lost, then smaller models: students
    distilled and channels pruned, `model` as the teacher, each as int8. It stops as soon as floor and latency are met.

    Args:
        model: trained float weights; stays as it is.
        data: its training images train and calibrate, its validation images decide.
        floor: least top-1 accuracy on validation images, in [0, 1].
        latency_ms: most milliseconds for one image, with torch's present threads; None: the fastest at the floor.
        run_dir: of the trainings. Killed at any moment and called again, it goes on from the last whole epoch.
        config: of every training; of a mapping, the settings that are given, with others that suit data and model.
        shares: of the multiply-adds, to prune, in rising order; after the first below the floor none is tried.
        students: fresh, seeded smaller models by name.
        images: training images to calibrate on.
        seed: of the calibration images and, unless `config` has its own, of every training.
        progress: show bars.

    Raises:
        ValueError: for a floor outside [0, 1], a latency that is not positive, or data without validation images.
    """
    if not 0 <= floor <= 1:
        raise ValueError(f"floor={floor} must be in [0, 1]: a share of the validation images")
    if latency_ms is not None and not latency_ms > 0:
        raise ValueError(f"latency_ms={latency_ms} must be positive")
    if len(data.val) == 0:
        raise ValueError(f"{data.name} has no validation images to compare on")
    settings = config if isinstance(config, TrainConfig) else {"seed": seed, **(config or {})}
    search = _Search(model, data, floor, Path(run_dir), settings, images, seed, progress)
    trials: list[Trial] = []
    with progress_bar("trials", 2 + len(shares) + len(students or {}), enabled=progress) as advance:
        for trial in search.trials(shares, students or {}):
            trials.append(trial)
            advance(1, f"{trial.name} {trial.accuracy.accuracy:.2%} {trial.ms:.3f} ms")
            if latency_ms is not None and Advice(tuple(trials), floor, latency_ms).met:
                break
    return Advice(search.timed_together(trials), floor, latency_ms, tuple(search.notes))


class _NotPrunable(Exception):
    """No smaller model of this share: a note, where the folder of another run is an error."""


@dataclass
class _Search:
    model: nn.Module
    data: ImageData
    floor: float
    run_dir: Path
    settings: TrainConfig | Mapping[str, Any]
    images: int
    seed: int
    progress: bool

    def __post_init__(self) -> None:
        self.model = copy.deepcopy(self.model).eval()
        self.calibration = list(calibration_batches(self.data, self.images, self.seed))
        self.example = torch.zeros(1, *self.data.image_shape)
        self.notes: list[str] = []

    def trials(self, shares: Sequence[float], students: Mapping[str, nn.Module]) -> Iterator[Trial]:
        yield self.trial("float", self.model)
        yield from self.int8("int8", self.model)
        for name, student in students.items():
            train(
                student,
                self.data,
                self.config(student),
                teacher=self.model,
                run_dir=self.run_dir / name,
                progress=self.progress,
            )
            yield from self.int8(f"{name} distilled, int8", student, student=name)
        for share in sorted(shares):
            name, allowed = f"{share:.0%} pruned", False
            try:
                smaller = self.pruned(share)
            except _NotPrunable as error:
                self.notes.append(f"{name}: {error}")
                return
            for trial in self.int8(f"{name}, int8", *smaller):
                allowed |= trial.accuracy.accuracy >= self.floor
                yield trial
            if not allowed:
                return

    def config(self, model: nn.Module, *, trained: bool = False) -> TrainConfig:
        if isinstance(self.settings, TrainConfig):
            return self.settings
        return suitable_config(self.data, model, self.settings, trained=trained)

    def pruned(self, share: float) -> tuple[nn.Module, Sizes]:
        """`share` of the multiply-adds gone, trained on with the whole model as the teacher."""
        macs = count_macs(self.model, self.data.image_shape)

        def drop(net: nn.Module, amount: float) -> nn.Module:
            scores, left = prune.magnitude(prune.weights(net)), int((1 - amount) * macs)
            try:
                return prune.prune_channels(net, self.example, scores, macs=left)
            except (ValueError, ImportError) as error:
                raise _NotPrunable(str(error)) from error

        net = prune.prune_gradually(
            self.model, self.data, self.config(self.model, trained=True), drop, final=share, steps=1,
            run_dir=self.run_dir / f"pruned-{share:g}", description="channels by magnitude",
            teacher=self.model, progress=self.progress,
        )  # fmt: skip
        return net, models.changes(models.sizes(self.model), net)

    def int8(
        self, name: str, model: nn.Module, channels: Sizes | None = None, **of: Any
    ) -> Iterator[Trial]:
        """Plain int8; where that falls below the floor and the float model does not, recovered, then mixed."""
        of["channels"] = channels
        plain = qkernels.quantize(model, "static", self.calibration)
        yield (trial := self.trial(name, plain, **of))
        if self.reaches(trial.accuracy) or not self.reaches(self.accuracy(model)):
            return
        equalized = recovery.equalize(model)
        again = qkernels.quantize(equalized, "static", self.calibration)
        recovery.correct_bias_(again, equalized, self.calibration)
        yield (trial := self.trial(f"{name}, recovered", again, **of))
        if self.reaches(trial.accuracy):
            return
        mixed = mix(
            model,
            "static",
            self.calibration,
            metric=lambda m: self.accuracy(m).accuracy,
            floor=self.floor,
        )
        yield self.trial(f"{name}, mixed with float", mixed, **of)

    def reaches(self, accuracy: Evaluation) -> bool:
        return accuracy.accuracy >= self.floor

    def accuracy(self, model: nn.Module) -> Evaluation:
        return accuracy_of(model, self.data, "val")

    def trial(self, name: str, model: nn.Module, **of: Any) -> Trial:
        form, ms = self._timed({name: model}, 0.3)[name]
        return Trial(name, model, self.accuracy(model), ms, stored_bytes(model), form, **of)

    def timed_together(self, trials: Sequence[Trial]) -> tuple[Trial, ...]:
        """The same trials, timed in turns, so that a slow spell of the machine meets all of them."""
        timed = self._timed({t.name: t.model for t in trials}, 0.5)
        return tuple(replace(t, ms=timed[t.name][1]) for t in trials)

    def _timed(
        self, candidates: Mapping[str, nn.Module], seconds: float
    ) -> dict[str, tuple[Form, float]]:
        """Name -> the form to deploy and its milliseconds for one image."""
        threads = torch.get_num_threads()
        forms = {name: deployed(model, self.example) for name, model in candidates.items()}
        with torch.inference_mode():
            times = time_in_turns(
                {name: prepare(self.example, threads) for name, (_, prepare) in forms.items()},
                seconds=seconds,
            )
        return {name: (forms[name][0], timing.median * 1e3) for name, timing in times.items()}
