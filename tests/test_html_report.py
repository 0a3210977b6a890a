"""The report of a pipeline: complete, self-contained, and honest about small differences."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from qkernels.distill import EpochRecord
from qkernels.evaluate import Evaluation
from qkernels.html_report import HEADINGS, cells, findings, write_report
from qkernels.machine import describe_machine
from qkernels.measure import PairedChange, Speed
from qkernels.pipeline import PipelineConfig, PipelineResult, Row
from qkernels.quantization import LayerError, QuantConfig, QuantReport

CERTAIN = PairedChange(0.02, (0.01, 0.03), 40, 1000)
CHANCE = PairedChange(-0.001, (-0.004, 0.002), 5, 1000)


def row(name: str, correct: int, kilobytes: int, **more: object) -> Row:
    speed = Speed(kilobytes / 100, kilobytes / 90, 1e6 / kilobytes, 64, ("contiguous",) * 2)
    values = {"precision": "fp32", "parameters": 250 * kilobytes, "macs": 2_000_000} | more
    return Row(name, accuracy=Evaluation(correct, 1000, 0.5), file_bytes=1000 * kilobytes,
               speed=speed, **values)  # type: ignore[arg-type]  # fmt: skip


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


def test_the_markdown_table_has_a_line_a_model(result: PipelineResult, tmp_path: Path) -> None:
    write_report(result, tmp_path)
    lines = (tmp_path / "report.md").read_text().splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(result.rows)
    assert {line.count("|") for line in table} == {len(HEADINGS) + 1}
    assert table[-1].startswith("| student int8 | 94.90 [")


def test_a_difference_within_the_interval_is_called_chance(result: PipelineResult) -> None:
    distilled, int8, cost = findings(result)
    assert "+2.00 [+1.00, +3.00] points" in distilled
    assert "chance" not in distilled
    assert "chance" in int8
    assert "5 of 1,000" in int8
    assert "4.00x smaller" in cost


def test_a_slower_int8_model_is_called_slower(result: PipelineResult) -> None:
    slow = replace(result.rows[3], macs=1000, speed=Speed(9.0, 9.0, 1.0, 64, ("contiguous",) * 2))
    sentences = findings(replace(result, rows=[*result.rows[:3], slow]))
    assert "22.50x slower" in sentences[2]
    assert "between its layers" in sentences[3]


def test_a_row_has_a_cell_for_every_heading(result: PipelineResult) -> None:
    assert all(len(cells(r)) == len(HEADINGS) for r in result.rows)


def test_a_teacher_that_was_not_trained_has_no_curve(
    result: PipelineResult, tmp_path: Path
) -> None:
    students = {name: curve for name, curve in result.curves.items() if name != "teacher"}
    assert write_report(replace(result, curves=students), tmp_path).exists()
