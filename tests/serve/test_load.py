"""The load generator, for a moment: every run is there and every request answered."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from served_nets import SIZE

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import serving as load  # noqa: E402


def test_every_run_is_measured_and_every_request_answered(program: Path, tmp_path: Path) -> None:
    out = tmp_path / "serving.json"
    command = [sys.executable, str(ROOT / "benchmarks/serving.py"), str(program), SIZE]
    subprocess.run([*command, "--seconds", "0.3", "--out", str(out)], check=True, timeout=120)
    results = json.loads(out.read_text())
    assert len(results["runs"]) == 4
    for row in results["runs"].values():
        assert row["unanswered"] == 0 and row["answered_per_second"] > 0
    closed = [row for name, row in results["runs"].items() if "clients" in name]
    assert all(row["refused_per_second"] == 0 for row in closed)
    page = load.document(results)
    assert all(name in page for name in results["runs"])
    assert load.OPEN in (ROOT / "docs/serving.md").read_text()
