"""KServe's model server and MLServer, run before a program: `make engines`, which gives each a Python of its own.

They hold other versions of packages than the rest, so that they are not in the environment of the other tests.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from served_nets import SIZE

from qkernels.program import Program

ROOT = Path(__file__).parents[2]
X = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)


def python(name: str) -> Path:
    folder = os.environ.get("QKERNELS_ENGINES")
    path = Path(folder or "nowhere", name, "bin/python")
    if not path.exists():
        pytest.skip("needs an environment with the engine: make engines")
    return path


@contextmanager
def engine(command: list[object], url: str, cwd: Path) -> Iterator[None]:
    log = (cwd / "log").open("w")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    words = [str(word) for word in command]
    process = subprocess.Popen(words, cwd=cwd, env=environment, stdout=log, stderr=log)
    try:
        until = time.monotonic() + 120
        while not answers(url):
            assert process.poll() is None and time.monotonic() < until, (cwd / "log").read_text()
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
        log.close()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def check(url: str, program: Path) -> None:
    """Its answers are the bits of the program, and what is wrong is told in the server's sentence."""
    one = {"name": "input", "shape": list(X.shape), "datatype": "FP32", "data": X.ravel().tolist()}

    def ask(message: dict[str, object]) -> dict[str, object]:
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(url, json.dumps(message).encode(), headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)

    answer = ask({"id": "mine", "inputs": [one]})
    (output,) = answer["outputs"]
    want = Program.load(program)(X)
    assert np.array_equal(np.array(output["data"], np.float32).reshape(want.shape), want)
    assert answer["id"] == "mine"
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask({"inputs": [one | {"name": "x"}]})
    assert refused.value.code in (400, 500) and b"no input 'x'" in refused.value.read()


def test_kserves_model_server_answers_with_the_bits_of_the_program(
    program: Path, tmp_path: Path, unused_ports: list[int]
) -> None:
    http, grpc = unused_ports[:2]
    ports = ["--http_port", http, "--grpc_port", grpc]
    model = ["--model_name", "small", "--program", program, "--size", SIZE]
    command = [python("kserve"), "-m", "qkernels.serve.kserve", *ports, *model]
    with engine(command, f"http://127.0.0.1:{http}/v2/models/small/ready", tmp_path):
        check(f"http://127.0.0.1:{http}/v2/models/small/infer", program)


def test_mlserver_answers_with_the_bits_of_the_program(
    program: Path, tmp_path: Path, unused_ports: list[int]
) -> None:
    http, grpc, metrics = unused_ports[:3]
    parameters = {"uri": str(program), "extra": {"sizes": [SIZE]}}
    model = {
        "name": "small",
        "implementation": "qkernels.serve.mlserver.Runtime",
        "parameters": parameters,
    }
    (tmp_path / "model-settings.json").write_text(json.dumps(model))
    ports = {"http_port": http, "grpc_port": grpc, "metrics_port": metrics, "parallel_workers": 0}
    (tmp_path / "settings.json").write_text(json.dumps(ports))
    command = [python("mlserver"), "-c", "from mlserver.cli import main; main()", "start", tmp_path]
    with engine(command, f"http://127.0.0.1:{http}/v2/models/small/ready", tmp_path):
        check(f"http://127.0.0.1:{http}/v2/models/small/infer", program)


@pytest.fixture
def unused_ports() -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports
