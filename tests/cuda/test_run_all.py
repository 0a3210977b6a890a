"""The script for a machine with a GPU, rehearsed without one: every step that can run does, the others say why not."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks/cuda"
STEPS = "load|micro|exact_rest|exact_tiles|memcheck|speed_tiles|speed_quantize|speed_linear"


def run(out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, FOLDER / "run_all.py", "--device", "cpu", "--quick", "--out", out]
    return subprocess.run([*command, *more], capture_output=True, text=True, check=False)


def test_a_rehearsal_records_every_step_and_a_second_run_skips_what_is_done(tmp_path: Path) -> None:
    first = run(tmp_path, "--only", STEPS, "--commit", "abc")
    assert first.returncode == 0, first.stdout + first.stderr
    files = sorted(tmp_path.glob("part-*.json"))
    records: dict[str, Any] = {}
    for path in files:
        records |= json.loads(path.read_text())
    assert len(files) == 3 and {r["commit"] for r in records.values()} == {"abc"}
    assert records["exact_rest"]["result"] == {"problems": 20, "differ": 0}
    assert records["memcheck"]["reason"] == records["exact_tiles"]["reason"] == "needs a GPU"
    tiles = [next(iter(row["us"])) for row in records["speed_tiles"]["result"]]
    assert tiles == ["hopper", "large", "tall", "medium", "small"]
    contenders: dict[str, Any] = {}
    for row in records["speed_linear"]["result"]:
        contenders |= row["us"]
    assert all(isinstance(t, float) for name, t in contenders.items() if "CUTLASS" not in name)
    assert "micro: ok; 22 of 22 readings ok" in first.stdout and "linear 8x32x32: " in first.stdout
    assert set(records["micro"]["result"]["readings"].values()) == {"ok"}
    assert {r["status"] for r in records.values()} == {"ok", "skipped"}
    again = run(tmp_path, "--only", "exact_rest").stdout.splitlines()
    assert not [line for line in again if line.startswith("exact_rest ")]
    document = tmp_path / "cuda.md"
    make = [sys.executable, FOLDER / "make_cuda_doc.py", tmp_path, "--out", document]
    subprocess.run(make, check=True)
    text = document.read_text()
    assert "No figure of a GPU has been measured yet" in text and "µs" not in text
    assert "| memcheck | skipped |" in text and "20 problems, 0 differ" in text
    assert "| ldmatrix: rows and words of a lane | ok |" in text


@pytest.fixture
def script() -> Iterator[Any]:
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("run_all")
    sys.path.remove(str(FOLDER))


def test_a_part_fits_a_lease_of_ten_minutes_and_all_fit_twenty_five(script: Any) -> None:
    limits = [sum(limit for _, limit in part.values()) for part in script.PARTS]
    assert max(limits) <= 540 and sum(limits) <= 1500


def test_a_step_that_is_cut_off_leaves_the_rows_it_finished(script: Any, tmp_path: Path) -> None:
    def rows(a: argparse.Namespace) -> Iterator[dict[str, Any]]:
        yield {"case": "first"}
        left.append(json.loads((tmp_path / "part-1.json").read_text())["load"])
        raise ValueError("the second row broke")

    left: list[dict[str, Any]] = []
    a = argparse.Namespace(out=tmp_path, commit="abc", device="cpu")
    script.STEPS["load"], before = (rows, 1), script.STEPS["load"]
    try:
        script.run_step(a, "load")
    finally:
        script.STEPS["load"] = before
    assert left[0]["status"] == "cut off" and left[0]["result"] == [{"case": "first"}]
    record = json.loads((tmp_path / "part-1.json").read_text())["load"]
    assert record["status"] == "failed" and record["result"] == [{"case": "first"}]
    assert "the second row broke" in record["error"]


def test_one_row_a_contender_makes_one_line_a_case(script: Any) -> None:
    make_cuda_doc = importlib.import_module("make_cuda_doc")
    rows = [
        {"case": c, "us": {name: t}} for name, t in (("ours", 1.0), ("theirs", 2.0)) for c in "ab"
    ]
    assert make_cuda_doc.merged(rows) == [
        {"case": c, "us": {"ours": 1.0, "theirs": 2.0}} for c in "ab"
    ]


def test_a_tile_that_never_ends_leaves_what_it_printed(script: Any) -> None:
    statement = 'import time; print(\'{"kind": "linear"}\', flush=True); time.sleep(60)'
    rows = list(script.checks.with_tile("hopper", statement, 3))
    assert rows == [{"kind": "linear"}, {"error": "did not end within 3 s"}]


def test_what_a_run_measures_is_named_where_git_is_not(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert script.commit() == "unknown"


def test_a_carried_program_is_taken_only_if_it_is_that_of_the_sources(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    micro = importlib.import_module("micro")
    carried = tmp_path / micro.program_name("90a")
    carried.write_text("built")
    monkeypatch.setattr(micro, "BUILT", tmp_path)
    assert micro.build_for_device(tmp_path / "other", "90a") == carried
    assert micro.program_name("100") != carried.name


def test_speed_tables_show_times_and_reasons(script: Any) -> None:
    make_cuda_doc = importlib.import_module("make_cuda_doc")
    rows = [{"case": "a", "us": {"ours": 1234.5, "theirs": "is not built"}}]
    text = "\n".join(make_cuda_doc.speed_table(rows))
    assert "| a | 1,234.5 | - |" in text and "- a, theirs: is not built" in text


@pytest.mark.parametrize(
    ("m", "n", "tile"),
    [(1, 4096, "m32_small_n"), (32, 28672, "m32_big_n"), (33, 4096, "m64"), (65, 4096, "m128"), (129, 64, "default")],
)  # fmt: skip
def test_the_peer_takes_the_tile_that_vllm_takes(m: int, n: int, tile: str) -> None:
    sys.path.insert(0, str(FOLDER))
    peer = importlib.import_module("cutlass_peer")
    sys.path.remove(str(FOLDER))
    assert peer.tile_of(m, n) == f"cutlass_s8_{tile}"
