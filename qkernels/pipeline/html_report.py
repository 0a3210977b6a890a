"""The report of a pipeline: one web page, one Markdown table, one JSON file."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from qkernels.measuring.speed import MEANING, Form, Speeds
from qkernels.pipeline.plots import draw_all
from qkernels.pipeline.result import PipelineResult, Row
from qkernels.pipeline.run import INT8, PROGRAM
from qkernels.utils.extras import require

PHRASES: dict[Form, str] = {
    "eager": "layers called from torch",
    "compiled": "one operator of torch",
    "program": "a program without torch",
}
SMALL_MACS = 1_000_000  # below, a forward pass is mostly the calls of its layers
HEADINGS = (
    "model",
    "test accuracy, %",
    "change, points",
    "answers changed",
    "file, KB",
    "parameters",
    "multiply-adds",
)
SPEED_HEADINGS = ("model", "runs as", "threads", "ms, p50", "p95", "images/s")


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
    """The main figures of the rows as a rich table of less than 80 columns, an int8 model in each of its forms."""
    one, most = result.rows[0].speeds.one_thread, result.rows[0].speeds.all_threads
    table = require("rich.table").Table(
        box=require("rich.box").SIMPLE_HEAD,
        caption=f"ms: one image, {_threads(one.threads)}; "
        f"images/s: batches of {most.batch}, {_threads(most.threads)}",
        caption_justify="left",
    )
    for heading in ("model", "test accuracy, %", "file, KB", "ms", "images/s"):
        table.add_column(heading, justify="right" if heading != "model" else "left", no_wrap=True)
    for row in result.rows:
        for form in row.speeds.forms:
            single, bulk = row.speeds.of(form)[0], row.speeds.of(form)[-1]
            size = (row.program_bytes if form == "program" else None) or row.file_bytes
            table.add_row(
                row.name if row.precision == "fp32" else f"{row.name}, {form}",
                cells(row)[1],
                f"{size / 1e3:,.1f}",
                f"{single.p50_ms:.3g}",
                f"{bulk.images_per_second:,.0f}",
                style="bold" if form == row.speeds.form and row is result.rows[3] else "",
            )
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
    assert int8.change is not None
    sentences = [
        f"The teacher's answers changed the student's accuracy by {_verdict(distilled)}.",
        f"int8 gives another answer for {int8.change.changed:,} of {int8.change.count:,} images "
        f"and changed the accuracy by {_verdict(int8)}; its file is {smaller}.",
        _deployed(distilled, int8),
    ]
    if int8.speeds.form != "eager":
        sentences.append(_layer_by_layer(distilled, int8))
    return sentences


def _deployed(distilled: Row, int8: Row) -> str:
    """What the form to deploy gains against the float student, and which form that is."""
    one, many, (image, bulk) = (
        int8.speeds.one_thread,
        int8.speeds.all_threads,
        _gains(distilled, int8),
    )
    return (
        f"Deployed, int8 runs as {PHRASES[one.form]}: one image takes {one.p50_ms:.3g} ms on one "
        f"thread, {_times(image, 'faster', 'slower')} than the fp32 student in torch; batches of "
        f"{many.batch} run at {many.images_per_second:,.0f} images/s on {_threads(many.threads)}, "
        f"{_times(bulk, 'faster', 'slower')}."
    )


def _layer_by_layer(distilled: Row, int8: Row) -> str:
    """The same layers called one by one, which is what a notebook times."""
    eager = Speeds(tuple(int8.speeds.of("eager")))
    image, bulk = _gains(distilled, replace(int8, speeds=eager))
    why = ""
    if min(image, bulk) < 1 and int8.macs < SMALL_MACS:
        why = (
            f": at {_count(int8.macs)} multiply-adds an image, its time goes between the layers, "
            "where int8 cannot help"
        )
    return (
        f"Layer by layer from torch, one image is {_times(image, 'faster', 'slower')} and a batch "
        f"{_times(bulk, 'faster', 'slower')} than fp32{why}."
    )


def _gains(before: Row, after: Row) -> tuple[float, float]:
    """How many times faster: one image on one thread, a batch on all."""
    image = before.speeds.one_thread.p50_ms / after.speeds.one_thread.p50_ms
    bulk = after.speeds.all_threads.images_per_second / before.speeds.all_threads.images_per_second
    return image, bulk


def next_commands(result: PipelineResult, page: Path) -> list[str]:
    """Three commands that go on from here, each with a comment."""
    program, size = result.config.run / PROGRAM, ",".join(map(str, result.data["image_shape"]))
    weights = result.config.run / "int8" / f"{result.config.observer}.safetensors"
    served = program if result.row(INT8).program_bytes else weights
    commands = {
        f"xdg-open {shlex.quote(str(page))}": "the report",
        f"qkernels serve {shlex.quote(str(served))}": "http://localhost:8080",
        f"qkernels profile {shlex.quote(str(served))} --size 1,{size}": "where time goes",
    }
    width = max(map(len, commands))
    return [f"{command:{width}}  # {what}" for command, what in commands.items()]


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
    )


def speed_cells(row: Row) -> list[tuple[str, ...]]:
    """Every form and thread count of the row as text, one cell a heading of `SPEED_HEADINGS`."""
    return [
        (
            row.name,
            speed.form,
            str(speed.threads),
            f"{speed.p50_ms:.3g}",
            f"{speed.p95_ms:.3g}",
            f"{speed.images_per_second:,.0f}",
        )
        for speed in row.speeds.every
    ]


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
    """A number as a reader wants it: 3,658 or 172.5 K or 26.4 M."""
    if number < 10_000:
        return f"{number:,}"
    return f"{number / 1e3:.1f} K" if number < 1_000_000 else f"{number / 1e6:,.1f} M"


def _row_json(row: Row) -> dict[str, Any]:
    values = asdict(row)
    values["accuracy"] |= {"share": row.accuracy.accuracy, "interval": row.accuracy.interval}
    return values


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _times(ratio: float, up: str, down: str) -> str:
    return f"{ratio:.2f}x {up}" if ratio >= 1 else f"{1 / ratio:.2f}x {down}"


@dataclass(frozen=True)
class _Tile:
    """One large figure at the head of the page."""

    figure: str
    label: str
    note: str = ""


def _tiles(result: PipelineResult) -> list[_Tile]:
    """The way from the teacher to its deployed int8 student in six figures."""
    teacher, _, distilled, int8 = result.rows[:4]
    small = teacher.file_bytes / int8.file_bytes
    lean = distilled.file_bytes / int8.file_bytes
    (image, bulk), (of_teacher, all_of_teacher) = (
        _gains(before, int8) for before in (distilled, teacher)
    )
    return [
        _Tile(f"{teacher.accuracy.accuracy:.1%}", "teacher", "test accuracy, fp32"),
        _Tile(f"{distilled.accuracy.accuracy:.1%}", "distilled student", _gain(distilled)),
        _Tile(f"{int8.accuracy.accuracy:.1%}", "int8 student", _gain(int8)),
        _Tile(
            f"{small:,.0f}x", "smaller file", f"than the teacher; {lean:.2g}x than its fp32 twin"
        ),
        _Tile(
            f"{image:,.1f}x",
            "faster for one image",
            f"than its fp32 twin, on one thread, as {PHRASES[int8.speeds.form]}; {of_teacher:,.0f}x than the teacher",
        ),
        _Tile(
            f"{bulk:,.1f}x",
            "images a second",
            f"of its fp32 twin, on {_threads(int8.speeds.all_threads.threads)}; "
            f"{all_of_teacher:,.0f}x those of the teacher",
        ),
    ]


def _gain(row: Row) -> str:
    assert row.change is not None
    doubt = "" if row.change.certain else " (may be chance)"
    return f"{100 * row.change.gain:+.2f} points against {row.against}{doubt}"


def _render(template: str, result: PipelineResult, **more: Any) -> str:
    jinja = require("jinja2")
    environment = jinja.Environment(
        loader=jinja.PackageLoader("qkernels.pipeline"),
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
        speed_headings=SPEED_HEADINGS,
        speeds=[(row.precision, line) for row in result.rows for line in speed_cells(row)],
        meaning=MEANING,
        findings=findings(result),
        tiles=_tiles(result),
        command=result.config.command(),
        **more,
    )
    return text
