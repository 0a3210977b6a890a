"""The charts of a pipeline's report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qkernels.measuring.speed import Speed
from qkernels.pipeline.result import PipelineResult, Row
from qkernels.utils.charts import FLOAT, INK, INT8, STYLE, VARIANTS, chart
from qkernels.utils.extras import require

LINES = {"teacher": FLOAT, "student alone": "#2f6f9f", "student distilled": "#4f9d69"}


def draw_all(result: PipelineResult) -> dict[str, str]:
    """Chart name -> SVG: accuracy, size, latency, curves and layers."""
    rows = result.rows
    with require("matplotlib").rc_context(STYLE):
        return {
            "accuracy": _accuracy(rows),
            "size": _bars(
                [(row.name, _color(row), row.file_bytes / 1e3) for row in rows], "KB on disk"
            ),
            "latency": _bars(
                [(name, color, speeds[0].p50_ms) for name, color, speeds in _forms(rows)],
                "ms for one image: p50, the whisker ends at p95",
                whiskers=[speeds[0].p95_ms - speeds[0].p50_ms for _, _, speeds in _forms(rows)],
            ),
            "throughput": _bars(
                [
                    (name, color, speeds[-1].images_per_second)
                    for name, color, speeds in _forms(rows)
                ],
                f"images a second at batch {rows[0].speeds.all_threads.batch}",
            ),
            "curves": _curves(result),
            "layers": _layers(result),
        }


def _accuracy(rows: list[Row]) -> str:
    """Points with 95 % intervals: an accuracy axis need not start at 0."""
    with chart(height=_height(rows)) as (axes, svg):
        places = _name_rows(axes, [row.name for row in rows])
        for place, row in zip(places, rows, strict=True):
            low, high = (100 * end for end in row.accuracy.interval)
            axes.plot([low, high], [place] * 2, color=_color(row), linewidth=3)
            axes.plot(100 * row.accuracy.accuracy, place, "o", color=_color(row), markersize=8)
            _label(axes, high, place, f"{row.accuracy.accuracy:.2%}")
        axes.set_xlabel("% of test images right, with the 95 % interval")
        axes.margins(x=0.18, y=0.12)
    return svg[0]


def _forms(rows: list[Row]) -> list[tuple[str, str, list[Speed]]]:
    """(name, colour, times by rising threads) of every form of the first four rows, of others the one to deploy."""
    return [
        (row.name if row.precision == "fp32" else f"{row.name}, {form}", _color(row), row.speeds.of(form))
        for index, row in enumerate(rows)
        for form in (row.speeds.forms if index < 4 else [row.speeds.form])
    ]  # fmt: skip


def _bars(
    rows: list[tuple[str, str, float]], unit: str, whiskers: Sequence[float] | None = None
) -> str:
    """Horizontal bars of (name, colour, value)."""
    names, colors, values = zip(*rows, strict=True)
    with chart(height=_height(rows)) as (axes, svg):
        places = _name_rows(axes, names)
        ends = [v + w for v, w in zip(values, whiskers or [0] * len(rows), strict=True)]
        axes.barh(places, values, height=0.56, color=colors)
        if whiskers:
            axes.errorbar(values, places, xerr=[[0] * len(rows), whiskers], fmt="none", ecolor=INK)
        for place, value, end in zip(places, values, ends, strict=True):
            _label(axes, end, place, f"{value:,.3g}" if value < 1000 else f"{value:,.0f}")
        axes.set_xlabel(unit)
        axes.set_xlim(0, max(ends) * 1.22)
        axes.locator_params(axis="x", nbins=5)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    return svg[0]


def _curves(result: PipelineResult) -> str:
    """Validation accuracy by epoch, and what the network got right while training, thin."""
    with chart(height=3.4) as (axes, svg):
        for name, history in result.curves.items():
            color = LINES[name]
            epochs = [record.epoch for record in history]
            train = [100 * (record.accuracy or 0.0) for record in history]
            axes.plot(epochs, train, color=color, linewidth=1, linestyle=":")
            seen = [(r.epoch, 100 * r.val_accuracy) for r in history if r.val_accuracy is not None]
            if seen:
                axes.plot(*zip(*seen, strict=True), color=color, linewidth=2, label=name)
        low = min(
            100 * (r.accuracy or 0.0) for h in result.curves.values() for r in h[len(h) // 10 :]
        )
        axes.set_ylim(bottom=max(0, low - 3))  # the first steps up would flatten the rest
        axes.set_xlabel("epoch")
        axes.set_ylabel("% right")
        axes.legend(loc="lower right")
    return svg[0]


def _layers(result: PipelineResult) -> str:
    """Signal to noise of each layer's output; one line a variant."""
    with chart(height=3.4) as (axes, svg):
        names: list[str] = []
        for color, (row, errors) in zip(VARIANTS, result.layers.items(), strict=False):
            names = [error.name for error in errors]
            decibels = [min(error.sqnr_db, 100.0) for error in errors]
            axes.plot(names, decibels, "o-", color=color, markersize=4, label=row)
        axes.set_ylabel("dB")
        axes.tick_params(axis="x", labelrotation=90 if len(names) > 6 else 0, labelsize=9)
        axes.set_ylim(bottom=0)
        if len(result.layers) > 1:
            axes.legend(loc="lower left")
    return svg[0]


def _height(rows: Sequence[object]) -> float:
    return 0.75 + 0.42 * len(rows)


def _name_rows(axes: Any, names: Sequence[str]) -> list[int]:
    """Label the y axis with the names, the first on top; returns their places."""
    places = list(range(len(names), 0, -1))
    axes.set_yticks(places, names)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    return places


def _label(axes: Any, end: float, place: int, text: str) -> None:
    """Text just right of where a bar or an interval ends."""
    axes.annotate(text, (end, place), (7, 0), textcoords="offset points", va="center")


def _color(row: Row) -> str:
    return INT8 if row.precision == "int8" else FLOAT
