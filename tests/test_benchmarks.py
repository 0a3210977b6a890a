"""The comparison with other libraries: its contenders, its command and the document made from it."""

from __future__ import annotations

import copy
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qkernels.measuring.bench import ConvCase, LinearCase

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import make_docs  # noqa: E402
import make_models_doc  # noqa: E402
import make_zoo_doc  # noqa: E402
import models  # noqa: E402
import zoo  # noqa: E402
from peers import contenders, harness, model_contenders, model_problem, real_models  # noqa: E402
from peers.model_problem import ModelProblem  # noqa: E402
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
    text = (tmp_path / f"benchmarks{make_docs.page_of(results).ending}.md").read_text()
    assert "| 1x1024x1024 | int8 | 1 |" in text
    for image in re.findall(r"\]\((benchmarks/[^)]*)\)", text):
        assert (tmp_path / image).exists()


def test_every_class_has_its_analysis_and_every_link_of_the_documents_leads_there() -> None:
    headings = re.findall(r"^#+ (.*)$", (ROOT / "docs/kernels.md").read_text(), re.M)
    anchors = {make_docs.anchor(heading) for heading in headings}
    assert {make_docs.anchor(target.name) for target in TARGETS} <= anchors
    for page in ("benchmarks.md", "benchmarks-amx.md"):
        document = (ROOT / "docs" / page).read_text()
        assert set(re.findall(r"kernels\.md#([\w-]*)", document)) <= anchors
        for image in re.findall(r"\]\((benchmarks/[^)]*)\)", document):
            assert (ROOT / "docs" / image).exists()


MODELS = [ModelProblem(name, 1) for name in ("resnet20", "tutorial_cnn", "encoder")]


@pytest.mark.parametrize("problem", MODELS, ids=lambda p: p.model)
def test_whole_models_of_ours_and_torch_compute_what_is_timed(problem: ModelProblem) -> None:
    for each in model_contenders.CONTENDERS[:6]:
        contenders.prepare(each, problem, 1)


def test_batch_norms_have_the_statistics_of_what_they_see() -> None:
    net = copy.deepcopy(model_problem.float_model("resnet20"))
    seen: list[torch.Tensor] = []
    for norm in (m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.register_forward_hook(lambda m, args, y: seen.append(y))
    net(model_problem.ModelProblem("resnet20", 16).x)
    assert len(seen) == 19
    assert all(abs(y.mean()) < 0.3 and 0.7 < y.std() < 1.4 for y in seen)


def test_every_model_of_the_targets_is_there_at_both_batches() -> None:
    found = {(p.model, p.batch) for p in model_problem.problems()}
    images = {"resnet50", "resnet18", "mobilenet_v2", "resnet20", "tutorial_cnn"}
    images |= model_problem.WATCHED
    assert found == {(m, b) for m in images for b in (1, 16)} | {("encoder", 1), ("encoder", 8)}
    over = {name for p in model_problem.problems() for g in p.goals for name in g.over}
    assert over <= set(model_contenders.PEERS)


def test_the_table_of_real_models_shows_those_that_fail_and_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def images(batch: int, random: torch.Generator) -> torch.Tensor:
        return torch.randn(batch, 3, 16, 16, generator=random)

    def small() -> torch.nn.Module:
        layers = (torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
        return torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(8 * 14 * 14, 4))

    def missing() -> torch.nn.Module:
        raise ModuleNotFoundError("No module named 'x'")

    table = [real_models.RealModel("small", "here", small, images)]
    table += [real_models.RealModel("absent", "x", missing, images)]
    monkeypatch.setattr(zoo, "real_models", lambda: iter(table))
    monkeypatch.setattr(make_docs, "DOCS", tmp_path)
    monkeypatch.setattr(harness, "use_threads", lambda threads: None)
    out = tmp_path / "zoo.json"
    arguments = harness.make_parser("", str(out)).parse_args(["--threads", "1", "--quick"])
    for _ in range(2):  # the second run finds its rows done
        zoo.run(arguments)
    rows = json.loads(out.read_text())["rows"]
    assert [row["model"] for row in rows] == ["small", "absent"]
    assert rows[0]["is_one"] and rows[0]["int8_layers"] == 2 and rows[0]["exact_db"] == math.inf
    make_zoo_doc.main(out)
    text = (tmp_path / "zoo.md").read_text()
    assert "| small | 2 of 2 | one |" in text
    assert "absent: ModuleNotFoundError: No module named 'x'" in text


def test_a_crash_costs_one_contender_of_one_row(tmp_path: Path) -> None:
    script = tmp_path / "crashing.py"
    script.write_text(CRASHING.format(root=ROOT / "benchmarks"))
    out = tmp_path / "rows.json"
    command = [sys.executable, str(script), "--out", str(out), "--threads", "1", "--quick"]
    done = subprocess.run(command, check=True, timeout=120, capture_output=True, text=True)
    assert "bad crashed (SIGSEGV); going on without it" in done.stdout
    row = json.loads(out.read_text())["rows"][0]
    assert set(row["us"]) == {"good"}
    assert row["reasons"] == {"bad": "crashed the process"}


CRASHING = """
import os, signal, sys
sys.path.insert(0, "{root}")
from peers import harness
from peers.contenders import Contender
from peers.model_problem import ModelProblem

def good(problem, threads):
    return lambda: problem.expected

def bad(problem, threads):
    os.kill(os.getpid(), signal.SIGSEGV)

def run(arguments):
    both = [Contender("good", "torch", good), Contender("bad", "torch", bad)]
    results = harness.load(arguments, both)
    harness.save(arguments.out, results)
    problem = ModelProblem("tutorial_cnn", 1)
    found = harness.prepare_all(both, problem, 1, ["row"], arguments.out, results["crashed"])
    timings = harness.take_turns(found[0], both, 0.01)
    results["rows"].append(dict(us=harness.microseconds(timings), reasons=found[1]))
    harness.save(arguments.out, results)

harness.in_a_child(harness.make_parser("", "x").parse_args(), run)
"""


def test_a_row_of_a_model_is_kept_and_the_document_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(problem: ModelProblem, threads: int) -> object:
        raise ModuleNotFoundError("No module named 'x'", name="x")

    absent = contenders.Contender("OpenVINO int8", "nncf", missing)  # type: ignore[arg-type]
    kept = [c for c in model_contenders.CONTENDERS if c.name in ("qkernels", "torch fp32")]
    monkeypatch.setattr(models, "CONTENDERS", (*kept, absent))
    monkeypatch.setattr(make_docs, "DOCS", tmp_path)
    monkeypatch.setattr(harness, "use_threads", lambda threads: None)  # other tests go on
    out = tmp_path / "rows.json"
    words = ["--only", "tutorial_cnn batch 1$|encoder batch 1", "--threads", "1", "--quick"]
    arguments = models.make_parser(str(out)).parse_args(words)
    models.run(arguments)
    results = json.loads(out.read_text())
    models.run(arguments)  # finds its rows done
    assert json.loads(out.read_text()) == results
    assert [row["model"] for row in results["rows"]] == ["tutorial_cnn", "encoder"]
    single = results["rows"][0]["goals"][0]
    assert single["best"] == "torch fp32"
    assert single["reached"] == pytest.approx(
        results["rows"][0]["us"]["torch fp32"][0] / results["rows"][0]["us"]["qkernels"][0]
    )
    assert results["rows"][1]["goals"][0]["best"] is None
    make_models_doc.main(out)
    text = (tmp_path / "benchmarks-models.md").read_text()
    assert "(1) OpenVINO int8: not installed: x" in text
    assert "1.1: not compared" in text
    for image in re.findall(r"\]\((benchmarks/[^)]*)\)", text):
        assert (tmp_path / image).exists()
