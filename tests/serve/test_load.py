"""The load generator and what is made of its figures, for a moment."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served_nets import SIZE

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import faults  # noqa: E402
import load  # noqa: E402
import make_serving_doc  # noqa: E402
import served  # noqa: E402
import serving  # noqa: E402
import soak  # noqa: E402

SMALL = served.Model("small", ((3, 8, 8),), 8, 64, 1000.0)


@pytest.fixture
def results(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Empty ones, for a model whose files are where the benchmark looks for them."""
    monkeypatch.setattr(served, "FILES", tmp_path)
    shutil.copy(program, SMALL.file("qkp"))
    cores = sorted(os.sched_getaffinity(0))
    machine = {"cpu": "c", "isa": "i", "versions": {}, "contenders": {}, "left_out": {}}
    return {
        "machine": machine, "command": "x", "threads": 1, "seconds": 0.3, "server_cores": cores[:1],
        "client_cores": cores[-1:], "models": {"small": vars(SMALL)}, "rows": [],
    }  # fmt: skip


def server(name: str) -> served.Server:
    return next(one for one in served.SERVERS if one.name == name)


@pytest.fixture(autouse=True)
def same_cores() -> Any:
    cores = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, cores)


def test_every_run_is_measured_once_and_every_request_answered(
    results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = server(served.OURS)
    here = served.Server(**{**vars(ours), "models": ("small",)})
    monkeypatch.setattr(served, "SERVERS", (here,))
    monkeypatch.setattr(serving, "STEPS", 2)
    out = tmp_path / "serving.json"
    serving.measure_all(out, "32 clients", (SMALL,), results)
    assert [row["run"] for row in results["rows"]] == [served.UNBATCHED, served.BATCHED]
    kept = json.loads(out.read_text())["rows"]
    serving.measure_all(out, "", (SMALL,), results)
    assert results["rows"][:2] == kept and len(results["rows"]) == len(ours.runs)
    for row in results["rows"]:
        if row["run"] != served.CALL and row["p50_ms"] is not None:
            assert row["unanswered"] == 0 and row["answered_per_second"] > 0
    monkeypatch.setattr(make_serving_doc.make_docs, "DOCS", tmp_path)
    page = make_serving_doc.serving_text(results)
    assert "| qkernels |" in page and "benchmarks/serving.svg" in page


def test_onnx_runtime_answers_behind_the_same_layer(results: dict[str, Any]) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    graph = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 17]>
        pool (float[N, 3, 8, 8] x) => (float[N, 3, 1, 1] y) { y = GlobalAveragePool(x) }
    """)
    onnx.save(graph, SMALL.file("onnx"))
    row = serving.measure(SMALL, server(served.PEER), served.BATCHED, results)
    assert row["answered_per_second"] > 0 and not row["unanswered"] and not row["refused_per_second"]  # fmt: skip


def test_litserve_answers_with_the_same_program(results: dict[str, Any]) -> None:
    pytest.importorskip("litserve")
    row = serving.measure(SMALL, server(served.LITSERVE), served.ALONE, results)
    assert row["answered_per_second"] > 0 and not row["unanswered"] and not row["refused_per_second"]  # fmt: skip


def test_rates_count_what_happened_within_the_bounds() -> None:
    answers = [
        (0.0, 1.5, 200),  # sent before
        (1.0, 1.1, 200),
        (1.2, 1.3, 503),
        (1.4, 3.5, 200),  # answered after
        (2.0, 2.0, load.CLOSED),
        (2.5, 9.0, load.HUNG),
    ]
    row = load.Load(1.0, 3.0, answers).row()
    assert row["sent_per_second"] == 5 / 2 and row["answered_per_second"] == 2 / 2
    assert row["refused_per_second"] == 1 / 2 and row["unanswered"] == 2
    assert row["p50_ms"] == pytest.approx(1100.0) and row["refused_p99_ms"] == pytest.approx(100.0)


def test_a_soak_finds_every_answer_right(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "soak.json"
    words = ["--minutes", "0.08", "--rate", "150", "--model", str(program), "--size", SIZE[2:]]
    words += ["--out", str(out)]
    command = [sys.executable, str(ROOT / "benchmarks/soak.py"), *words]
    done = subprocess.run(command, timeout=120, capture_output=True, text=True)
    assert out.exists(), done.stderr
    results = json.loads(out.read_text())
    assert results["wrong"] == 0, done.stdout
    assert {row["kind"] for row in results["answers"]} == {k.name for k in soak.kinds((3, 8, 8))}
    monkeypatch.setattr(make_serving_doc.make_docs, "DOCS", tmp_path)
    assert "benchmarks/soak.svg" in make_serving_doc.soak_text(results)


def test_memory_that_grows_is_seen_and_memory_that_wavers_is_not() -> None:
    wave = 3 * np.sin(np.arange(100))
    assert soak.growth([(i, 50 + w, 9) for i, w in enumerate(wave)]) < soak.BOUND_MB
    leak = soak.growth([(i, 50 + w + 0.1 * i, 9) for i, w in enumerate(wave)])
    assert leak == pytest.approx(6, abs=1) and leak > soak.BOUND_MB


def test_the_page_has_a_place_for_the_figures() -> None:
    page = (ROOT / "docs/serving.md").read_text()
    assert all(f"<!-- {name} -->\n" in page for name in ("serving", "faults", "soak"))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads /proc")
def test_a_fault_is_measured_with_what_it_leaves(program: Path, tmp_path: Path) -> None:
    row = faults.measure(faults.FAULTS[1], program, SIZE[2:], 1.0)
    assert row["fault"].startswith("kill -9") and not row["wrong"] and not row["hung"]
    assert row["answered"] > 0 and row["lost"] <= faults.CLIENTS
    start = faults.many_models(program, SIZE[2:], 3)
    page = make_serving_doc.faults_text({"faults": [row], "start": start, "command": "x"})
    assert "kill -9 of the serving process" in page and "3 models" in page
