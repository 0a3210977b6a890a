"""Runs rows one by one; each leaves a JSON file, and a second run goes on where the first stopped."""

from __future__ import annotations

import importlib
import re
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from qkernels import data as datasets
from qkernels import models
from qkernels.data import hold_out
from qkernels.data.paths import data_root
from qkernels.distill.run_folder import RunFolder
from qkernels.pipeline import create_model
from techniques import results
from techniques.results import Result
from techniques.row import Row, Setting

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Plan:
    """What the whole table depends on; a run folder holds one of these."""

    run: Path
    epochs: int
    seeds: int
    images: int | None  # of the training set and of the test set; None: all
    teacher: str
    student: str
    teacher_epochs: int

    def description(self) -> dict[str, object]:
        """What must be equal for the folder to be continued; more seeds may follow."""
        return {k: v for k, v in vars(self).items() if k not in ("run", "seeds")}


def sections() -> dict[str, list[Row]]:
    """Heading -> rows, of every module here that has ROWS; the baseline comes first."""
    stems = sorted(path.stem for path in HERE.glob("[!_]*.py"))
    stems.sort(key=lambda stem: stem != "baseline")
    modules = [importlib.import_module(f"techniques.{stem}") for stem in stems]
    return {_heading(module): module.ROWS for module in modules if hasattr(module, "ROWS")}


def _heading(module: ModuleType) -> str:
    """What the module says its rows are: the first line of "Rows of the table: something." is "Something"."""
    said = (module.__doc__ or module.__name__).splitlines()[0].rpartition(": ")[2].rstrip(".")
    return said[0].upper() + said[1:]


def result_path(plan: Plan, row: Row, seed: int) -> Path:
    slug = re.sub(r"[^a-z0-9]+", "-", row.name.lower()).strip("-")
    return plan.run / f"seed{seed}" / f"{slug}.json"


def run(plan: Plan, only: str = "") -> None:
    """Every row whose name or heading holds `only` and that has no result yet; failed ones are tried again."""
    RunFolder(plan.run, plan.description(), resume=True).create()
    todo = [
        (row, seed)
        for seed in range(plan.seeds)
        for heading, rows in sections().items()
        for row in rows
        if only.lower() in f"{heading} {row.name}".lower() and not _done(plan, row, seed)
    ]
    if not todo:
        return
    settings = _Settings(plan)
    for number, (row, seed) in enumerate(todo, start=1):
        print(f"[{number}/{len(todo)}] {row.name}, seed {seed}", flush=True)
        path = result_path(plan, row, seed)
        result = _attempt(row, replace(settings.of(seed), run_dir=path.with_suffix("")))
        results.save(path, result)
        print(f"    {_told(result)}, {result.seconds:.0f} s", flush=True)


def _done(plan: Plan, row: Row, seed: int) -> bool:
    found = results.load(result_path(plan, row, seed))
    return found is not None and not found.error


def _attempt(row: Row, setting: Setting) -> Result:
    """The row's result; an error becomes one, so that the other rows are still run."""
    started = time.perf_counter()
    setting.run_dir.mkdir(parents=True, exist_ok=True)
    try:
        torch.manual_seed(setting.seed)
        outcome = row.run(setting)
        measured = results.measure(outcome, setting)
    except Exception as error:
        traceback.print_exc()
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return Result(setting.seed, time.perf_counter() - started, error=said)
    seconds = time.perf_counter() - started
    return Result(setting.seed, seconds, **measured, note=outcome.note, figures=outcome.figures)


def _told(result: Result) -> str:
    if result.error:
        return f"failed: {result.error}"
    models = {"float": result.float_model, "int8": result.int8_model}
    return ", ".join(f"{name} {m.accuracy:.2%}" for name, m in models.items() if m is not None)


class _Settings:
    """Data and teacher, trained once; the student alone, trained once a seed."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.data = _limited(datasets.load("cifar10-jpeg"), plan.images)
        weights = data_root() / f"models/cifar10_{plan.teacher}.safetensors"
        teacher = models.load_weights(create_model(plan.teacher, self.data), weights)
        base = self._setting(teacher, teacher, seed=0)
        config = base.training(epochs=plan.teacher_epochs, lr=0.02, warmup_epochs=0)
        print(f"teacher: {plan.teacher}, {plan.teacher_epochs} epochs", flush=True)
        self.teacher = base.fit(teacher, "teacher", config=config)

    def of(self, seed: int) -> Setting:
        """The setting of a seed; the student alone is trained at the first call and read afterwards."""
        student = self._student(seed)
        setting = self._setting(self.teacher, student, seed)
        return replace(setting, alone=setting.fit(student, f"seed{seed}/alone"))

    def _setting(self, teacher: nn.Module, alone: nn.Module, seed: int) -> Setting:
        plan = self.plan
        return Setting(
            self.data, teacher, lambda: self._student(seed), alone, plan.epochs, plan.run, seed
        )

    def _student(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return create_model(self.plan.student, self.data)


def _limited(data: datasets.ImageData, images: int | None) -> datasets.ImageData:
    if images is None:
        return data
    parts = {}
    for name in ("train", "val", "test"):
        split = data.split(name)  # of all classes: the files are sorted by class
        parts[name] = hold_out(split, images / len(split))[1] if images < len(split) else split
    return replace(data, **parts)


def outcomes(plan: Plan) -> Iterator[tuple[str, list[tuple[Row, list[Result]]]]]:
    """(heading, rows with the results that there are, a seed each) for the table; none of a row that is yet to run."""
    for heading, rows in sections().items():
        found = [
            (row, [r for s in range(plan.seeds) if (r := results.load(result_path(plan, row, s)))])
            for row in rows
        ]
        yield heading, found
