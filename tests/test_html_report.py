"""The report of a pipeline: complete, self-contained, and honest about small differences."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from qkernels.distill import EpochRecord
from qkernels.evaluate import Evaluation, PairedChange
from qkernels.measuring.machine import describe_machine
from qkernels.measuring.speed import MEANING, Form, Speed, Speeds
from qkernels.pipeline import PipelineConfig, PipelineResult, Row
from qkernels.pipeline.html_report import (
    HEADINGS,
    SPEED_HEADINGS,
    cells,
    findings,
    next_commands,
    results_table,
    speed_cells,
    write_report,
)
from qkernels.quantization import LayerError, QuantConfig, QuantReport

CERTAIN = PairedChange(0.02, (0.01, 0.03), 40, 1000)
CHANCE = PairedChange(-0.001, (-0.004, 0.002), 5, 1000)


def speed(form: Form, threads: int, ms: float) -> Speed:
    return Speed(form, threads, ms, 1.1 * ms, 1e4 * threads / ms, 64, ("contiguous",) * 2)


def row(name: str, correct: int, kilobytes: int, **more: object) -> Row:
    forms = ["eager"] if more.get("precision") != "int8" else list(MEANING)
    speeds = Speeds(
        tuple(speed(f, t, kilobytes / 100 / 2**i) for i, f in enumerate(forms) for t in (1, 2))
    )
    values = {"precision": "fp32", "parameters": 250 * kilobytes, "macs": 2_000_000} | more
    return Row(name, accuracy=Evaluation(correct, 1000, 0.5), file_bytes=1000 * kilobytes,
               speeds=speeds, **values)  # type: ignore[arg-type]  # fmt: skip


@pytest.fixture
def result() -> PipelineResult:
    curve = tuple(EpochRecord(e, 1 / e, 0.5, None, 0.4 + e / 100, 0.1, 1.0) for e in (1, 2, 3))
    errors = [LayerError("conv<1>", "QuantConv2d", float("inf"), 1.0)]
    errors.append(LayerError("fc", "QuantLinear", 41.5, 0.9999))
    return PipelineResult(
        config=PipelineConfig.for_data("digits", teacher_width=3),
        machine=describe_machine(),
        data={"name": "digits & more", "image_shape": [1, 8, 8], "classes": ["0", "1"]}
        | {"train": 3000, "val": 1000, "test": 1000},
        rows=[
            row("teacher", 970, 800),
            row("student alone", 930, 40),
            row("student distilled", 950, 40, against="student alone", change=CERTAIN),
            row("student int8", 949, 10, precision="int8", against="student distilled",
                change=CHANCE),
        ],
        curves={"teacher": curve, "student alone": curve, "student distilled": curve},
        quantization={"student int8": QuantReport(config=QuantConfig())},
        layers={"student int8": errors},
    )  # fmt: skip


def test_the_page_needs_no_other_file(result: PipelineResult, tmp_path: Path) -> None:
    page = write_report(result, tmp_path / "new" / "report").read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!#)[^"']*["']""", page)
    assert "<script" not in page
    assert page.count("<svg") == 6


def test_names_are_escaped_in_the_page(result: PipelineResult, tmp_path: Path) -> None:
    page = write_report(result, tmp_path).read_text()
    assert "digits &amp; more" in page
    assert "conv<1>" not in page


def test_the_json_is_valid_and_whole(result: PipelineResult, tmp_path: Path) -> None:
    write_report(result, tmp_path)
    values = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert [r["name"] for r in values["rows"]] == [r.name for r in result.rows]
    assert values["rows"][3]["change"]["changed"] == 5
    assert values["rows"][0]["accuracy"]["share"] == 0.97
    assert values["layers"]["student int8"][0]["sqnr_db"] is None
    assert values["machine"]["isa"] == result.machine["isa"]
    assert values["config"]["teacher_width"] == 3
    assert values["machine"]["versions"]["torch"]


def test_the_markdown_tables_have_a_line_a_model_and_a_line_a_form_and_thread_count(
    result: PipelineResult, tmp_path: Path
) -> None:
    write_report(result, tmp_path)
    lines = (tmp_path / "report.md").read_text().splitlines()
    table = [line for line in lines if line.startswith("|")]
    models, forms = table[: 2 + len(result.rows)], table[2 + len(result.rows) :]
    assert {line.count("|") for line in models} == {len(HEADINGS) + 1}
    assert models[-1].startswith("| student int8 | 94.90 [")
    assert {line.count("|") for line in forms} == {len(SPEED_HEADINGS) + 1}
    assert len(forms) == 2 + 2 * (3 + len(MEANING))
    assert forms[-1] == "| student int8 | program | 2 | 0.025 | 0.0275 | 800,000 |"


def test_a_difference_within_the_interval_is_called_chance(result: PipelineResult) -> None:
    distilled, int8, *_ = findings(result)
    assert "+2.00 [+1.00, +3.00] points" in distilled
    assert "chance" not in distilled
    assert "chance" in int8
    assert "5 of 1,000" in int8
    assert "4.00x smaller" in int8


def test_the_headline_is_the_deployed_form_and_says_which(result: PipelineResult) -> None:
    deployed, eager = findings(result)[2:]
    assert "as a program without torch: one image takes 0.025 ms on one thread, 16.00x" in deployed
    assert "800,000 images/s on 2 threads, 16.00x faster" in deployed
    assert "Layer by layer from torch, one image is 4.00x faster" in eager
    both = Speeds(result.rows[3].speeds.every[:4])  # eager and compiled
    chained = findings(
        replace(result, rows=[*result.rows[:3], replace(result.rows[3], speeds=both)])
    )[2]
    assert "as one operator of torch: one image takes 0.05 ms" in chained


def test_a_slower_int8_model_is_called_slower_and_why(result: PipelineResult) -> None:
    slow = Speeds((speed("eager", 1, 9.0), speed("program", 1, 0.8)))
    rows = [*result.rows[:3], replace(result.rows[3], macs=1000, speeds=slow)]
    deployed, eager = findings(replace(result, rows=rows))[2:]
    assert "2.00x slower than the fp32 student" in deployed
    assert "22.50x slower" in eager and "between the layers" in eager


def test_the_summary_fits_80_columns_and_shows_every_form(result: PipelineResult) -> None:
    stream = io.StringIO()
    Console(file=stream, width=80).print(results_table(result))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    for text in (
        "teacher",
        "student int8, eager",
        "student int8, compiled",
        "student int8, program",
    ):
        (line,) = (x for x in lines if x.strip().startswith(f"{text}  "))
        assert "[" in line, "the interval stands on the line of its model"
    assert "batches of 64, 2 threads" in stream.getvalue()


def test_the_summary_ends_with_commands_that_go_on(result: PipelineResult) -> None:
    page = result.config.run / "report" / "index.html"
    commands = next_commands(result, page)
    assert len(commands) == 3 and str(page) in commands[0]
    assert all("int8/percentile.safetensors" in command for command in commands[1:])
    served = replace(result, rows=[*result.rows[:3], replace(result.rows[3], program_bytes=9)])
    assert all("student.qkp" in command for command in next_commands(served, page)[1:])


def test_a_row_has_a_cell_for_every_heading(result: PipelineResult) -> None:
    assert all(len(cells(r)) == len(HEADINGS) for r in result.rows)
    assert all(len(line) == len(SPEED_HEADINGS) for r in result.rows for line in speed_cells(r))


def test_a_teacher_that_was_not_trained_has_no_curve(
    result: PipelineResult, tmp_path: Path
) -> None:
    students = {name: curve for name, curve in result.curves.items() if name != "teacher"}
    assert write_report(replace(result, curves=students), tmp_path).exists()
