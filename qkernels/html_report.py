"""The report of a pipeline: one web page, one Markdown table, one JSON file."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qkernels.data.extras import require
from qkernels.pipeline.result import PipelineResult, Row
from qkernels.plots import draw_all

SMALL_MACS = 1_000_000  # below, a forward pass is mostly the calls of its layers
HEADINGS = (
    "model",
    "test accuracy, %",
    "change, points",
    "answers changed",
    "file, KB",
    "parameters",
    "multiply-adds",
    "ms, p50 / p95",
    "images/s",
)


def write_report(result: PipelineResult, folder: str | Path) -> Path:
    """Write index.html (self-contained), report.md and report.json; returns the page's path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(to_json(result), indent=2, allow_nan=False) + "\n"
    (folder / "report.json").write_text(text)
    (folder / "report.md").write_text(_render("report.md", result))
    page = folder / "index.html"
    page.write_text(_render("report.html", result, charts=draw_all(result)))
    return page


def results_table(result: PipelineResult) -> Any:
    """The main figures of the rows as a rich table of less than 80 columns."""
    columns = (0, 1, 4, 8)  # of `cells`
    table = require("rich.table").Table(box=require("rich.box").SIMPLE_HEAD)
    for index, column in enumerate(columns):
        table.add_column(HEADINGS[column], justify="right" if index else "left", no_wrap=True)
    table.add_column("ms / image", justify="right")
    for row in result.rows:
        texts = cells(row)
        table.add_row(*(texts[column] for column in columns), f"{row.speed.p50_ms:.3g}")
    return table


def to_json(result: PipelineResult) -> dict[str, Any]:
    """Everything the pipeline found, as JSON-able values; an infinite ratio becomes null."""
    return {
        "machine": result.machine,
        "config": result.config.model_dump(mode="json"),
        "data": result.data,
        "findings": findings(result),
        "rows": [_row_json(row) for row in result.rows],
        "curves": {name: [asdict(r) for r in curve] for name, curve in result.curves.items()},
        "quantization": {name: r.to_dict() for name, r in result.quantization.items()},
        "layers": {
            name: [{**asdict(e), "sqnr_db": _finite(e.sqnr_db)} for e in errors]
            for name, errors in result.layers.items()
        },
    }


def findings(result: PipelineResult) -> list[str]:
    """What the first rows say, one sentence each; a difference within the noise is called that."""
    distilled, int8 = result.rows[2:4]
    smaller = _times(distilled.file_bytes / int8.file_bytes, "smaller", "larger")
    quicker = _times(distilled.speed.p50_ms / int8.speed.p50_ms, "faster", "slower")
    bulk = int8.speed.images_per_second / distilled.speed.images_per_second
    assert int8.change is not None
    sentences = [
        f"The teacher's answers changed the student's accuracy by {_verdict(distilled)}.",
        f"int8 gives another answer for {int8.change.changed:,} of {int8.change.count:,} images "
        f"and changed the accuracy by {_verdict(int8)}.",
        f"Against the fp32 student, the int8 file is {smaller}, one image is {quicker} and a batch "
        f"of {int8.speed.batch} is {_times(bulk, 'faster', 'slower')}.",
    ]
    if bulk < 1 and int8.macs < SMALL_MACS:
        sentences.append(
            f"At {_count(int8.macs)} multiply-adds an image, this network spends its time between "
            "its layers, where int8 cannot help."
        )
    return sentences


def cells(row: Row) -> tuple[str, ...]:
    """The row as text, one cell a heading of `HEADINGS`."""
    low, high = row.accuracy.interval
    return (
        row.name,
        f"{100 * row.accuracy.accuracy:.2f} [{100 * low:.1f}, {100 * high:.1f}]",
        _change(row),
        "" if row.change is None else f"{row.change.changed:,}",
        f"{row.file_bytes / 1e3:,.1f}",
        _count(row.parameters),
        _count(row.macs),
        f"{row.speed.p50_ms:.3g} / {row.speed.p95_ms:.3g}",
        f"{row.speed.images_per_second:,.0f}",
    )


def _change(row: Row) -> str:
    """Difference of the accuracies in points with its interval, or nothing."""
    if row.change is None:
        return ""
    low, high = row.change.interval
    return f"{100 * row.change.gain:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"


def _verdict(row: Row) -> str:
    if row.change is None or row.change.certain:
        return f"{_change(row)} points"
    return f"{_change(row)} points, no more than chance can do"


def _count(number: int) -> str:
    """3,658 or 172.5 K or 26.4 M"""
    if number < 10_000:
        return f"{number:,}"
    return f"{number / 1e3:.1f} K" if number < 1_000_000 else f"{number / 1e6:,.1f} M"


def _row_json(row: Row) -> dict[str, Any]:
    values = asdict(row)
    values["accuracy"] |= {"share": row.accuracy.accuracy, "interval": row.accuracy.interval}
    return values


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _times(ratio: float, up: str, down: str) -> str:
    return f"{ratio:.2f}x {up}" if ratio >= 1 else f"{1 / ratio:.2f}x {down}"


@dataclass(frozen=True)
class _Tile:
    """One large figure at the head of the page."""

    figure: str
    label: str
    note: str = ""


def _tiles(result: PipelineResult) -> list[_Tile]:
    """The way from the teacher to its int8 student in five figures."""
    teacher, _, distilled, int8 = result.rows[:4]
    small = teacher.file_bytes / int8.file_bytes
    lean = distilled.file_bytes / int8.file_bytes
    return [
        _Tile(f"{teacher.accuracy.accuracy:.1%}", "teacher", "test accuracy, fp32"),
        _Tile(f"{distilled.accuracy.accuracy:.1%}", "distilled student", _gain(distilled)),
        _Tile(f"{int8.accuracy.accuracy:.1%}", "int8 student", _gain(int8)),
        _Tile(
            f"{small:,.0f}x", "smaller file", f"than the teacher; {lean:.2g}x than its fp32 twin"
        ),
        _Tile(
            _speedup(teacher, int8),
            "images a second",
            f"of the teacher; {_speedup(distilled, int8)} those of its fp32 twin",
        ),
    ]


def _gain(row: Row) -> str:
    assert row.change is not None
    doubt = "" if row.change.certain else " (may be chance)"
    return f"{100 * row.change.gain:+.2f} points against {row.against}{doubt}"


def _speedup(before: Row, after: Row) -> str:
    return f"{after.speed.images_per_second / before.speed.images_per_second:,.1f}x"


def _render(template: str, result: PipelineResult, **more: Any) -> str:
    jinja = require("jinja2")
    environment = jinja.Environment(
        loader=jinja.PackageLoader("qkernels"),
        autoescape=jinja.select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja.StrictUndefined,
    )
    text: str = environment.get_template(template).render(
        result=result,
        machine=result.machine,
        data=result.data,
        headings=HEADINGS,
        rows=[(row.precision, cells(row)) for row in result.rows],
        findings=findings(result),
        tiles=_tiles(result),
        command=result.config.command(),
        **more,
    )
    return text
