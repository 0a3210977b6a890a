"""The README's count of lines: every job runs with every library that is installed, and answers as the float model."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import jobs  # noqa: E402
from exact_runtime import PEERS_SATURATE  # noqa: E402

MODULES = {"torchao": "torchao", "quanto": "optimum.quanto", "NNCF + OpenVINO": "nncf"}
SATURATE = ("NNCF + OpenVINO", "ONNX Runtime") if PEERS_SATURATE else ()


@pytest.mark.parametrize("library", jobs.LIBRARIES)
def test_the_jobs_whose_lines_are_counted_run_and_answer_as_the_float_model(
    library: str, tmp_path: Path
) -> None:
    pytest.importorskip(MODULES.get(library, library.lower().replace(" ", "")))
    done: list[object] = []
    for name in jobs.JOBS:
        function = jobs.job(library, name)
        if function is None:
            assert name in ("dynamic", "without_torch"), "every library does the rest"
            continue
        if function in done:
            continue
        done.append(function)
        case = jobs.case(tmp_path)
        expected = case.model(case.x)
        answer = torch.as_tensor(function(case))
        error = (answer - expected).norm() / expected.norm()
        near = 0.12 if library in SATURATE else 0.1  # 0.103 to 0.116 where they do
        assert 0 < error < near, f"{name}: int8, and near the float answer"


def test_the_readme_counts_the_lines_that_are_there() -> None:
    assert jobs.table() in (ROOT / "README.md").read_text()
