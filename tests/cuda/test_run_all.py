"""The script for a machine with a GPU, rehearsed without one: every step that can run does, the others say why not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "benchmarks/cuda"
STEPS = "load|exact_linear|exact_rest|memcheck|speed_quantize"


def run(out: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        FOLDER / "run_all.py",
        "--device",
        "cpu",
        "--quick",
        "--only",
        STEPS,
        "--out",
        out,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_rehearsal_writes_a_record_a_step_and_a_second_run_skips_what_is_done(
    tmp_path: Path,
) -> None:
    first = run(tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    records = {p.stem: json.loads(p.read_text()) for p in tmp_path.glob("*.json")}
    assert records["exact_linear"]["result"] == {"problems": 20, "differ": 0}
    assert (
        records["memcheck"] | {"status": "skipped", "reason": "needs a GPU"} == records["memcheck"]
    )
    assert all(r["status"] in ("ok", "skipped") and r["commit"] for r in records.values())
    assert "exact_linear" not in run(tmp_path).stdout
    document = tmp_path / "cuda.md"
    subprocess.run(
        [sys.executable, FOLDER / "make_docs.py", tmp_path, "--out", document], check=True
    )
    text = document.read_text()
    assert "| memcheck | skipped |" in text and "20 problems, 0 differ" in text
    assert "| quantize rows 16x32 |" in text
