"""The time of a model, step by step."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from qkernels.utils.columns import aligned
from qkernels.utils.extras import require


@dataclass(frozen=True)
class StepProfile:
    """One step. ``macs``, ``bytes``: multiply-adds, and bytes where each moves once; 0 for a step that is torch's.

    ``path`` is the way that a convolution takes (csrc/README.md), empty for other kinds.
    """

    name: str
    kind: str
    path: str
    x: str
    y: str
    macs: int
    bytes: int
    seconds: float

    @property
    def gops(self) -> float:
        """1e9 operations a second, a multiply-add counting as two."""
        return 2 * self.macs / self.seconds / 1e9

    @property
    def gbytes(self) -> float:
        """1e9 bytes a second."""
        return self.bytes / self.seconds / 1e9


@dataclass(frozen=True)
class Profile:
    """The steps of one call in order, with the median time of each, and the peak they are compared with."""

    steps: tuple[StepProfile, ...]
    peak_gops: float
    threads: int

    @classmethod
    def of(
        cls,
        steps: Sequence[dict[str, Any]],
        seconds: Sequence[Sequence[float]],
        peak_gops: float,
        threads: int,
    ) -> Profile:
        """``seconds``: one sequence a run, in the order of ``steps``."""
        medians = [max(median(times), 1e-9) for times in zip(*seconds, strict=True)]
        rows = [StepProfile(**s, seconds=t) for s, t in zip(steps, medians, strict=True)]
        return cls(tuple(rows), peak_gops, threads)

    @property
    def seconds(self) -> float:
        """The seconds of all steps together."""
        return sum(step.seconds for step in self.steps)

    def __repr__(self) -> str:
        head = ("step", "kind", "reads", "writes", "µs", "of all", "of peak", "GB/s")
        rows = [head]
        for s in self.steps:
            peak = f"{s.gops / self.peak_gops:.0%}" if s.macs else ""
            speed = f"{s.gbytes:.1f}" if s.bytes else ""
            share = f"{s.seconds / self.seconds:.1%}"
            rows.append(
                (
                    s.name,
                    f"{s.kind} {s.path}".rstrip(),
                    s.x,
                    s.y,
                    f"{s.seconds * 1e6:,.1f}",
                    share,
                    peak,
                    speed,
                )
            )
        threads = f"{self.threads} thread" + "s" * (self.threads > 1)
        total = f"{self.seconds * 1e3:.3f} ms in {len(self.steps)} steps, {threads}"
        return "\n".join(
            [*aligned(rows, right=range(4, len(head))), f"{total}; peak {self.peak_gops:,.0f} GOPS"]
        )

    def plot(self, path: str | os.PathLike[str]) -> None:
        """One bar a step, as long as its time, the part that the peak would need in a darker shade; SVG, PNG or PDF."""
        figure = require("matplotlib.figure").Figure(
            figsize=(7, 1 + 0.22 * len(self.steps)), layout="constrained"
        )
        axes = figure.subplots()
        places = range(len(self.steps), 0, -1)
        times = [step.seconds * 1e6 for step in self.steps]
        floors = [2 * step.macs / self.peak_gops / 1e3 for step in self.steps]
        axes.barh(places, times, height=0.7, color="#8fa3b8", label="measured")
        axes.barh(
            places,
            floors,
            height=0.7,
            color="#d9622b",
            label="at the peak of the multiply instruction",
        )
        axes.set_yticks(places, [f"{step.name} ({step.kind})" for step in self.steps], fontsize=7)
        axes.set_xlabel("µs")
        axes.margins(y=0.01)
        axes.legend(frameon=False)
        figure.savefig(path)
