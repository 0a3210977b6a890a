"""The list of endpoints: docs/endpoints.md, whose lines are run; OpenAPI; and the page of them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from serve_process import Served, serving
from torch import nn

import qkernels as qk
from qkernels.image_input import ImageInput
from qkernels.program import Program
from qkernels.serve import endpoints

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/endpoints.md"
LINES = re.findall(r"^    (.+)$", PAGE.read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Of a model like the digits' student, untrained."""
    models = tmp_path_factory.mktemp("models")
    path = models / "student/1/model.qkp"
    path.parent.mkdir(parents=True)
    x = torch.randn(4, 1, 8, 8)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)).eval()
    qk.compile(qk.quantize(net, "static", [x]), x).save(path)
    described = ImageInput(tuple("0123456789"), (8, 8), (0.3,), (0.4,))
    Program.load(path).save(path, extra=described.as_extra())
    with serving(models, "--control", "explicit", "--load", "student") as server:
        yield server


def test_the_page_of_the_docs_is_that_of_the_endpoints() -> None:
    assert PAGE.read_text() == endpoints.markdown(), "python benchmarks/make_endpoints_doc.py"
    assert len(LINES) == len(endpoints.ENDPOINTS)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_each_line_of_the_docs_gets_what_it_says(server: Served) -> None:
    lines = sorted(LINES, key=lambda line: "unload" in line)  # which comes last
    for line in lines:
        here = line.replace("localhost:8080", server.address).replace(
            "curl ", "curl --fail-with-body --max-time 20 ", 1
        )
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {here}"], cwd=ROOT, capture_output=True, timeout=60
        )
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        (endpoint,) = [one for one in endpoints.ENDPOINTS if one.curl == line]
        if endpoint.answer == "application/json" and "Header-Content-Length" not in line:
            json.loads(done.stdout)
        else:
            assert done.stdout


def test_every_route_is_described_and_nothing_else(server: Served) -> None:
    with server.client() as client:
        described = client.get("/openapi.json").raise_for_status().json()
        assert described["openapi"] == "3.1.0"
        for path, methods in described["paths"].items():
            address = path.replace("{name}", "nothing").replace("{version}", "1")
            answer = client.request("DELETE", address)
            assert answer.status_code == 405
            allowed = set(answer.headers["allow"].split(", ")) - {"HEAD"}
            assert allowed == {method.upper() for method in methods}
        ids = [
            one["operationId"]
            for methods in described["paths"].values()
            for one in methods.values()
        ]
        assert len(set(ids)) == len(ids) == len(endpoints.ENDPOINTS)
        page = client.get("/docs").raise_for_status()
        assert all(one.path in page.text for one in endpoints.ENDPOINTS)
        assert "default-src 'none'" in page.headers["content-security-policy"]
