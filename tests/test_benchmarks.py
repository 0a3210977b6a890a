"""The comparison with other libraries: its contenders, its command and the document made from it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qkernels.bench import ConvCase, LinearCase

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import make_docs  # noqa: E402
from peers import contenders  # noqa: E402
from peers.problem import Problem, Unsupported  # noqa: E402
from peers.targets import TARGETS, problems  # noqa: E402

SMALL = [
    Problem(LinearCase(3, 64, 32), "int8"),
    Problem(LinearCase(3, 64, 32), "static"),
    Problem(LinearCase(3, 64, 32), "dynamic"),
    Problem(LinearCase(3, 64, 32), "weight-only bf16"),
    Problem(ConvCase("3x3", 3, 8, 16, 9), "int8"),
    Problem(ConvCase("depthwise", 3, 8, 16, 9, 1, 8), "static"),
    Problem(ConvCase("depthwise", 3, 8, 8, 9, 1, 8, dilation=2), "static"),
]


def contender(build: object) -> contenders.Contender:
    return contenders.Contender("someone", "some-package", build)  # type: ignore[arg-type]


@pytest.mark.parametrize("problem", SMALL, ids=lambda p: f"{p.case.name} {p.scheme}")
def test_our_layers_and_torch_compute_what_is_timed(problem: Problem) -> None:
    for each in contenders.CONTENDERS[:3]:
        if (each.name, problem.scheme) != ("torch fp32", "weight-only bf16"):
            contenders.prepare(each, problem, 1)


def test_a_contender_with_wrong_results_is_not_timed() -> None:
    problem = SMALL[1]
    wrong = contender(lambda p, threads: lambda: torch.zeros(3, 32))
    with pytest.raises(Unsupported, match="100% off"):
        contenders.prepare(wrong, problem, 1)


def test_a_contender_that_fails_or_is_missing_is_a_reason() -> None:
    def missing(problem: Problem, threads: int) -> object:
        raise ModuleNotFoundError("No module named 'x'", name="x")

    def failing(problem: Problem, threads: int) -> object:
        raise ValueError("no such kernel\nand more")

    with pytest.raises(Unsupported, match="not installed: x"):
        contenders.prepare(contender(missing), SMALL[0], 1)
    with pytest.raises(Unsupported, match=r"failed: ValueError: no such kernel$"):
        contenders.prepare(contender(failing), SMALL[0], 1)


def test_every_row_is_there_once() -> None:
    names = [(t.name, p.case.name, p.scheme) for t, p in problems()]
    assert len(names) == len(set(names))


def test_the_command_writes_a_row_and_the_document_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "rows.json"
    command = [sys.executable, str(ROOT / "benchmarks/layers.py"), "--quick", "--threads", "1"]
    command += ["--only", "1x1024x1024 int8", "--out", str(out)]
    for _ in range(2):  # the second run finds its row done
        subprocess.run(command, check=True, timeout=300, capture_output=True)
    results = json.loads(out.read_text())
    assert [row["case"] for row in results["rows"]] == ["1x1024x1024"]
    assert 0 < results["rows"][0]["share_of_peak"] < 1.5
    monkeypatch.setattr(make_docs, "DOCS", tmp_path)
    make_docs.main([out])
    text = (tmp_path / "benchmarks.md").read_text()
    assert "| 1x1024x1024 | int8 | 1 |" in text
    for image in re.findall(r"\]\((benchmarks/[^)]*)\)", text):
        assert (tmp_path / image).exists()


def test_every_class_has_its_analysis_and_every_link_of_the_document_leads_there() -> None:
    headings = re.findall(r"^#+ (.*)$", (ROOT / "docs/kernels.md").read_text(), re.M)
    anchors = {make_docs.anchor(heading) for heading in headings}
    assert {make_docs.anchor(target.name) for target in TARGETS} <= anchors
    document = (ROOT / "docs/benchmarks.md").read_text()
    assert set(re.findall(r"kernels\.md#([\w-]*)", document)) <= anchors
    for image in re.findall(r"\]\((benchmarks/[^)]*)\)", document):
        assert (ROOT / "docs" / image).exists()
