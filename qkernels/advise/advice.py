"""What the advisor tried, and what it would take."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from qkernels.evaluate import Evaluation
from qkernels.measuring.speed import Form
from qkernels.models.channels import Sizes
from qkernels.utils.columns import aligned
from qkernels.utils.extras import require


@dataclass(frozen=True, eq=False)
class Trial:
    """One combination. ``accuracy``: on validation images; ``ms``: one image in the ``form`` to deploy."""

    name: str
    model: nn.Module  # as quantized, layer by layer; what `qkernels.save` takes
    accuracy: Evaluation
    ms: float
    bytes: int  # as stored
    form: Form = "eager"
    channels: Sizes | None = None  # of a pruned model, for `qkernels.models.create`
    student: str | None = None  # of those given, the one distilled into


@dataclass(frozen=True)
class Advice:
    """Every trial in the order it was made, the float model first."""

    trials: tuple[Trial, ...]
    floor: float
    latency_ms: float | None
    notes: tuple[str, ...] = ()  # what could not be tried, and why

    def allowed(self, trial: Trial) -> bool:
        """Whether it reaches the floor."""
        return trial.accuracy.accuracy >= self.floor

    @property
    def best(self) -> Trial:
        """The fastest of those that reach the floor; if none does, the most accurate."""
        allowed = [t for t in self.trials if self.allowed(t)]
        if allowed:
            return min(allowed, key=lambda t: t.ms)
        return max(self.trials, key=lambda t: t.accuracy.accuracy)

    @property
    def met(self) -> bool:
        """Whether the best one is as accurate and as fast as was asked."""
        return self.allowed(self.best) and self.best.ms <= (self.latency_ms or float("inf"))

    @property
    def frontier(self) -> list[Trial]:
        """Those that no other beats in accuracy and time, the fastest first."""
        kept: list[Trial] = []
        for trial in sorted(self.trials, key=lambda t: (t.ms, -t.accuracy.accuracy)):
            if not kept or trial.accuracy.accuracy > kept[-1].accuracy.accuracy:
                kept.append(trial)
        return kept

    def __str__(self) -> str:
        rows: list[Sequence[str]] = [("", "accuracy, %", "ms", "runs as", "KB", "")]
        for trial in self.trials:
            low, high = trial.accuracy.interval
            marks = "best" if trial is self.best else "frontier" if trial in self.frontier else ""
            if not self.allowed(trial):
                marks = f"below {self.floor:.2%}"
            accuracy = f"{trial.accuracy.accuracy:.2%} [{low:.1%}, {high:.1%}]".replace("%", "")
            rows.append(
                (
                    trial.name,
                    accuracy,
                    f"{trial.ms:.3g}",
                    trial.form,
                    f"{trial.bytes / 1e3:,.1f}",
                    marks,
                )
            )
        return "\n".join([*aligned(rows, right=(2, 4)), *self.notes, self.sentence()])

    def sentence(self) -> str:
        """What to take, or what could not be reached."""
        best = self.best
        what = f"{best.name}: {best.accuracy.accuracy:.2%}, {best.ms:.3g} ms, {best.form}"
        if not self.allowed(best):
            return f"nothing tried reaches {self.floor:.2%}; the most accurate is {what}"
        if not self.met:
            return f"nothing tried that reaches {self.floor:.2%} takes {self.latency_ms:g} ms; the fastest is {what}"
        return f"take {what}"

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Accuracy over time, the frontier joined, floor and latency as lines; SVG, PNG or PDF."""
        figure = require("matplotlib.figure").Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        front = self.frontier
        axes.plot(
            [t.ms for t in front],
            [t.accuracy.accuracy * 100 for t in front],
            color="#d9622b",
            zorder=1,
        )
        for trial in self.trials:
            low, high = (100 * end for end in trial.accuracy.interval)
            color = "#d9622b" if trial in front else "#8fa3b8"
            axes.plot([trial.ms] * 2, [low, high], color=color, alpha=0.4)
            axes.plot(trial.ms, 100 * trial.accuracy.accuracy, "o", color=color)
            axes.annotate(
                trial.name,
                (trial.ms, 100 * trial.accuracy.accuracy),
                (5, 4),
                textcoords="offset points",
                fontsize=8,
            )
        axes.axhline(100 * self.floor, color="#66727f", linestyle=":", linewidth=1)
        if self.latency_ms is not None:
            axes.axvline(self.latency_ms, color="#66727f", linestyle=":", linewidth=1)
        axes.set_xlabel("ms for one image")
        axes.set_ylabel("% right on validation images, 95 % interval")
        axes.set_xlim(left=0)
        figure.savefig(path)
