"""The life of a server process: start, replacement of its file, load, and its end."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx2 as httpx
import numpy as np
import pytest
import torch
from serve_process import serving
from served_nets import SIZE, save_program
from starlette.testclient import TestClient

import qkernels as qk
from qkernels import models
from qkernels.program import Program
from qkernels.serve import Settings, application
from qkernels.serve.model import Arrays, Opened, Tensor, open_model

X = np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)
ASK = {
    "inputs": [
        {"name": "input", "shape": [1, 3, 8, 8], "datatype": "FP32", "data": X.ravel().tolist()}
    ]
}


def answer(client: httpx.Client, name: str = "small") -> np.ndarray:
    got = client.post(f"/v2/models/{name}/infer", json=ASK).raise_for_status().json()
    return np.array(got["outputs"][0]["data"], np.float32)[None]


def wait_for(what: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not what():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc")
@pytest.mark.parametrize("module", [("qkernels.serve",), ("qkernels", "serve")])
def test_a_program_is_served_without_torch_in_the_process(
    program: Path, module: tuple[str, ...]
) -> None:
    with serving(program, "--size", SIZE, module=module) as server, server.client() as client:
        answer(client)
        for process in (server.process.pid, server.child):
            maps = Path(f"/proc/{process}/maps").read_text()
            assert "qkernels/_core" in maps and "libtorch" not in maps


def test_a_checkpoint_is_served_with_the_bits_of_the_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    kwargs = {"image_size": 8, "in_channels": 3, "width": 4}
    model = models.create("tutorial_cnn", **kwargs).eval()
    x = torch.from_numpy(X)
    int8 = qk.quantize(model, "static", [torch.randn(4, 3, 8, 8)])
    path = tmp_path / "small.safetensors"
    qk.save(int8, path, architecture={"name": "tutorial_cnn", "kwargs": kwargs})
    with serving(path) as server, server.client() as client:
        assert np.array_equal(answer(client), int8(x).numpy())


def test_a_replaced_file_is_taken_up_and_a_broken_one_is_not(tmp_path: Path) -> None:
    path = save_program(tmp_path / "small.qkp")
    old = Program.load(path)(X)
    with serving(path, "--size", SIZE) as server, server.client() as client:
        version = client.get("/v2/models/small").json()["versions"]
        assert np.array_equal(answer(client), old)
        path.write_bytes(path.read_bytes()[:-1])
        wait_for(lambda: "the old version goes on" in server.lines[-1]["message"])
        assert np.array_equal(answer(client), old)
        assert client.get("/v2/models/small").json()["versions"] == version
        assert (
            'qkernels_loads_total{model="small",result="failed"} 1.0' in client.get("/metrics").text
        )

        save_program(path, seed=1)
        new = Program.load(path)(X)
        assert not np.array_equal(new, old)
        failures: list[str] = []
        stop = threading.Event()

        def ask() -> None:  # no answer is missing or mixed while the model changes
            with server.client() as mine:
                while not stop.is_set():
                    y = answer(mine)
                    if not (np.array_equal(y, old) or np.array_equal(y, new)):
                        failures.append(str(y))

        asking = threading.Thread(target=ask)
        asking.start()
        wait_for(lambda: client.get("/v2/models/small").json()["versions"] != version)
        stop.set()
        asking.join()
        assert np.array_equal(answer(client), new) and not failures


def test_sigterm_answers_what_has_come_and_ends_the_process(program: Path) -> None:
    with serving(program, "--size", SIZE, "--max-delay", "500") as server:
        got: list[int] = []

        def ask() -> None:
            with server.client() as client:
                got.append(client.post("/v2/models/small/infer", json=ASK).status_code)

        asking = [threading.Thread(target=ask) for _ in range(4)]
        for thread in asking:
            thread.start()
        with server.client() as client:
            wait_for(
                lambda: 'qkernels_queue_rows{model="small"} 4.0' in client.get("/metrics").text
            )
        server.process.send_signal(signal.SIGTERM)
        for thread in asking:
            thread.join()
        assert got == [200] * 4
        assert server.process.wait(20) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(server.url + "/v2")


def test_a_request_that_waits_too_long_is_told_so(program: Path) -> None:
    ask = ASK | {"parameters": {"timeout": 50_000}}
    with (
        serving(program, "--size", SIZE, "--max-delay", "5000") as server,
        server.client() as client,
    ):
        said = client.post("/v2/models/small/infer", json=ask)
        assert said.status_code == 504 and "0.05 s" in said.json()["error"]
        assert 'qkernels_queue_rows{model="small"} 0.0' in client.get("/metrics").text


def test_a_full_queue_is_refused_with_the_time_to_come_back(program: Path) -> None:
    words = ("--size", SIZE, "--max-delay", "5000", "--max-batch", "2", "--queue", "2")
    body = {"inputs": [ASK["inputs"][0] | {"data": [0.0] * 192}]}
    slow = body | {"parameters": {"timeout": 500_000}}
    with serving(program, *words) as server, server.client() as client:
        waiting = threading.Thread(
            target=lambda: httpx.post(server.url + "/v2/models/small/infer", json=slow)
        )
        waiting.start()
        wait_for(lambda: 'qkernels_queue_rows{model="small"} 1.0' in client.get("/metrics").text)
        two = {"name": "input", "shape": [2, 3, 8, 8], "datatype": "FP32", "data": [0.0] * 384}
        refused = client.post("/v2/models/small/infer", json={"inputs": [two]})
        waiting.join()
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
        assert (
            'qkernels_requests_total{model="small",status="503"} 1.0' in client.get("/metrics").text
        )


@pytest.mark.parametrize("given", ["bearer secret", "BEARER  secret", "Bearer secret \t"])
def test_a_secret_that_ends_in_a_newline_and_rfc_9110_s_other_spellings_are_let_in(
    program: Path, given: str
) -> None:
    settings = Settings(program, "small", sizes=((1, 3, 8, 8),), token="secret\n")
    with TestClient(application(settings)) as client:
        assert client.get("/v2", headers={"authorization": given}).status_code == 200
        for wrong in ("Bearer", "Bearer secre", "Basic secret", "secret", ""):
            assert client.get("/v2", headers={"authorization": wrong}).status_code == 401


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
@pytest.mark.parametrize("host", ["::", "[::]"])
def test_every_address_of_ipv6_is_every_address_of_ipv4_too(program: Path, host: str) -> None:
    with serving(program, "--size", SIZE, "--host", host) as server:
        port = server.address.rpartition(":")[2]
        for here in ("127.0.0.1", "[::1]"):
            assert httpx.get(f"http://{here}:{port}/v2/health/ready", timeout=20).status_code == 200


def test_a_file_that_goes_away_is_news_once(tmp_path: Path) -> None:
    path = save_program(tmp_path / "small.qkp")
    with serving(path, "--size", SIZE) as server, server.client() as client:
        path.rename(tmp_path / "elsewhere")
        wait_for(lambda: "what is loaded goes on" in server.lines[-1]["message"])
        time.sleep(2.5)
        assert sum("goes on" in line["message"] for line in server.lines) == 1
        answer(client)
        (tmp_path / "elsewhere").rename(path)
        save_program(path, seed=1)
        wait_for(lambda: "is ready" in server.lines[-1]["message"])
        assert sum("can be read again" in line["message"] for line in server.lines) == 1


def test_only_health_is_open_without_the_token(program: Path) -> None:
    with (
        serving(program, "--size", SIZE, QKERNELS_TOKEN="secret") as server,
        server.client() as client,
    ):
        assert client.get("/v2/health/ready").status_code == 200
        for given in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}):
            for path in ("/v2", "/metrics", "/v2/models/small"):
                said = client.get(path, headers=given)
                assert said.status_code == 401 and said.json() == {"error": "a bearer token is needed"}  # fmt: skip
        client.headers["authorization"] = "Bearer secret"
        answer(client)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nothing.qkp"], "nothing.qkp"),
        (["small.qkp"], "images of any size: give --size"),
        (["small.qkp", "--size", "3"], "size '3' must be"),
        (["small.qkp", "--size", "1,4,8,8"], r"\[N, 3, H, W\] is needed"),
        (["small.qkp", "--size", SIZE, "--threads", "999"], "threads=999 is above"),
        (["broken.qkp"], "broken.qkp: .* it has 6 bytes"),
        (["small.qkp", "--colour", "red"], "--colour"),
        (["small.qkp", "--size", SIZE, "--max-body", "inf"], "max-body=inf must be"),
        (["small.qkp", "--size", SIZE, "--timeout", "nan"], "timeout=nan must be"),
        (
            ["small.qkp", "--size", SIZE, "--certificate", "nope.pem"],
            "nope.pem: there is no such file",
        ),
        (["small.qkp", "--size", SIZE, "--name", "a/b"], "name='a/b' must be without /"),
        (["small.qkp", "--size", SIZE, "--host", "256.1.1.1"], "256.1.1.1, port 0: "),
    ],
)
def test_what_cannot_be_served_is_one_sentence(
    tmp_path: Path, program: Path, words: list[str], sentence: str
) -> None:
    (tmp_path / "small.qkp").write_bytes(program.read_bytes())
    (tmp_path / "broken.qkp").write_bytes(b"broken")
    command = [sys.executable, "-m", "qkernels.serve", *words, "--port", "0", "--log-level", "error"]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(Path(qk.__file__).parents[1])}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert re.search(sentence, line)


def test_a_checkpoint_that_is_no_program_runs_in_torch_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.PReLU(), torch.nn.Conv2d(4, 2, 1)
    ).eval()
    int8 = qk.quantize(net, "static", [x])
    path = tmp_path / "m.safetensors"
    qk.save(int8, path)
    monkeypatch.setattr(qk, "load", lambda path: int8)
    model = open_model(path, [(1, 3, 8, 8)], 1).warm_up(4)
    assert model.platform == "qkernels_torch" and model.outputs[0].size == (2, 6, 6)
    (y,) = model.run([np.frombuffer(x.numpy().tobytes(), "<f4").reshape(4, 3, 8, 8)])
    assert np.array_equal(y, int8(x).detach().numpy())


def test_a_model_that_fails_is_answered_and_logged_and_the_server_goes_on(
    program: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(path: Path, sizes: object, threads: int) -> Opened:
        def run(inputs: Arrays) -> Arrays:
            if inputs[0].any():
                raise RuntimeError("out of luck")
            return inputs

        return Opened("1", "p", (Tensor("input", (1,)),), None, run)

    monkeypatch.setattr("qkernels.serve.repository.open_model", failing)
    ask = {"inputs": [{"name": "input", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}]}
    with TestClient(application(Settings(program, "m"))) as client:
        wait_for(lambda: client.get("/v2/health/ready").status_code == 200)
        said = client.post("/v2/models/m/infer", json=ask)
        assert said.status_code == 500 and "luck" not in said.text
        assert "out of luck" in caplog.text
        ask["inputs"][0]["data"] = [0.0]
        assert client.post("/v2/models/m/infer", json=ask).status_code == 200


def test_a_server_is_live_before_it_is_ready(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()

    def slow(path: Path, sizes: object, threads: int) -> Opened:
        go.wait(20)
        return Opened("1", "p", (Tensor("input", (1,)),), None, lambda inputs: inputs)

    monkeypatch.setattr("qkernels.serve.repository.open_model", slow)
    with TestClient(application(Settings(program, "m"))) as client:
        assert client.get("/v2/health/live").status_code == 200
        for path in ("/v2/health/ready", "/v2/models/m/ready", "/v2/models/m"):
            assert client.get(path).status_code == 503
        assert client.post("/v2/models/m/infer").status_code == 503
        go.set()
        wait_for(lambda: client.get("/v2/models/m/ready").status_code == 200)
