"""Overload, killed processes and SIGTERM under load: every request is answered, refused, or its connection closed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import uvloop
from serve_process import Served, serving
from served_nets import SIZE
from starlette.testclient import TestClient

from qkernels.serve import Settings, application

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import load

X = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
ASK = load.infer(X, name="small")
HEADERS = b"POST /v2/models/small/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"


def address(server: Served) -> tuple[str, int]:
    host, port = server.address.split(":")
    return host, int(port)


def under_load(server: Served, clients: int, seconds: float, act: Callable[[], None]) -> load.Load:
    """What clients in closed loops got while something was done to the server, half a second after they began."""

    async def run() -> load.Load:
        asking = asyncio.create_task(load.closed_loop(address(server), ASK, clients, seconds))
        await asyncio.sleep(0.5)
        act()
        return await asking

    return uvloop.run(run())


def statuses(found: load.Load) -> Counter[int]:
    return Counter(status for _, _, status in found.answers)


def metric(server: Served, name: str) -> float:
    with server.client() as client:
        found = re.search(rf"^{re.escape(name)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    assert found is not None, name
    return float(found[1])


def wait_for(what: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not what():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_in_overload_every_request_is_answered_or_refused_and_what_is_refused_costs_no_computing(
    program: Path,
) -> None:
    with serving(program, "--size", SIZE, "--max-batch", 4, "--queue", 8) as server:
        got = statuses(under_load(server, 64, 1.0, lambda: None))
        assert set(got) == {200, 503}
        assert metric(server, 'qkernels_requests_total{model="small",status="200"}') == got[200]
        assert metric(server, 'qkernels_requests_total{model="small",status="503"}') == got[503]
        assert metric(server, 'qkernels_batch_rows_sum{model="small"}') == got[200]


def test_as_many_requests_are_inside_as_may_wait_and_run_and_the_next_is_refused_unread(
    program: Path,
) -> None:
    words = ("--size", SIZE, "--max-batch", 2, "--queue", 2, "--workers", 1)
    with serving(program, *words) as server:
        inside = [socket.create_connection(address(server), timeout=20) for _ in range(4)]
        for wire in inside:
            wire.sendall(HEADERS)  # and no body
        wait_for(lambda: metric(server, 'qkernels_requests_in_flight{model="small"}') == 4)
        with socket.create_connection(address(server), timeout=20) as wire:
            for _ in range(2):  # the connection stays usable
                wire.sendall(HEADERS)
                answer = wire.recv(1000)
                assert answer.startswith(b"HTTP/1.1 503") and b"retry-after: 1" in answer
                assert json.loads(answer.partition(b"\r\n\r\n")[2]) == {
                    "error": "too many requests are waiting"
                }
                wire.sendall(bytes(100))
        for header, body in ((b"Connection: close", bytes(100)), (b"Expect: 100-continue", b"")):
            with socket.create_connection(address(server), timeout=20) as wire:
                wire.sendall(HEADERS.replace(b"Host: x", b"Host: x\r\n" + header))
                wire.sendall(body)
                answer = b"".join(iter(partial(wire.recv, 1000), b""))  # up to the end
                assert answer.startswith(b"HTTP/1.1 503") and b"connection: close" in answer
        for wire in inside:
            wire.close()
        wait_for(lambda: metric(server, 'qkernels_requests_in_flight{model="small"}') == 0)
        assert set(statuses(under_load(server, 1, 0.1, lambda: None))) == {200}


WHOLE = ASK.partition(b"\r\n\r\n")
CLOSING = {
    "": False,
    "Connection: keep-alive\r\n": False,
    "Connection: close\r\n": True,
    "X: transfer-encoding: chunked\r\n": False,
    "Expect: 100-continue\r\n": True,
    "Content-Length : 5\r\n": True,  # no HTTP
    "Content-Length: 5\r\n": True,
}


@pytest.mark.parametrize("line", CLOSING)
@pytest.mark.parametrize("pieces", [1, 2, 50])
def test_whatever_way_a_request_to_a_full_server_comes_it_has_one_answer(
    full: Served, line: str, pieces: int
) -> None:
    head, _, body = WHOLE
    request = head + b"\r\n" + line.encode() + b"\r\n" + body
    size = -(-len(request) // pieces)
    with socket.create_connection(address(full), timeout=20) as wire:
        for round_ in range(2):
            try:
                for at in range(0, len(request), size):
                    wire.sendall(request[at : at + size])
                    time.sleep(0.001)
            except OSError:
                assert CLOSING[line]
            answer = b""
            while (part := wire.recv(4096)) and not answer.endswith(b"}"):
                answer += part
                if answer.endswith(b"}"):
                    break
            status = b"400" if line.startswith("Content-Length") else b"503"
            assert answer.startswith(b"HTTP/1.1 " + status) and answer.count(b"HTTP/1.1") == 1
            assert (b"connection: close" in answer) == CLOSING[line] and b"date: " in answer
            if CLOSING[line]:
                break
            assert round_ < 2


def test_a_full_server_ends_the_connection_of_an_http_1_0_client_that_would_keep_it(
    full: Served,
) -> None:
    head, _, body = WHOLE
    request = head.replace(b"HTTP/1.1", b"HTTP/1.0") + b"\r\nConnection: Keep-Alive\r\n\r\n" + body
    with socket.create_connection(address(full), timeout=20) as wire:
        wire.sendall(request)
        answer = b"".join(iter(partial(wire.recv, 1000), b""))  # up to the end
    assert answer.startswith(b"HTTP/1.1 503") and b"connection: close" in answer


@pytest.fixture(scope="module")
def full(program: Path) -> Iterator[Served]:
    """As many requests are inside as may, for as long as the tests take."""
    words = ("--size", SIZE, "--max-batch", 1, "--queue", 1, "--timeout", 300)
    with serving(program, *words) as server:
        inside = [socket.create_connection(address(server), timeout=20) for _ in range(2)]
        for wire in inside:
            wire.sendall(HEADERS)
        wait_for(lambda: metric(server, 'qkernels_requests_in_flight{model="small"}') == 2)
        yield server
        for wire in inside:
            wire.close()


def test_a_thousand_idle_connections_cost_little_and_hinder_nobody(program: Path) -> None:
    with serving(program, "--size", SIZE) as server:

        def megabytes() -> float:
            text = Path(f"/proc/{server.child}/status").read_text()
            return int(text.partition("VmRSS:")[2].split()[0]) / 1e3

        before = megabytes()
        idle = [socket.create_connection(address(server), timeout=20) for _ in range(1000)]
        for wire in idle[::2]:
            wire.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert set(statuses(under_load(server, 8, 1.0, lambda: None))) == {200}
        assert metric(server, "qkernels_connections") >= 1000
        assert megabytes() < before + 40
        for wire in idle:
            wire.close()
        wait_for(lambda: metric(server, "qkernels_connections") == 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_for_the_log_stops_nothing(program: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [str(program), "--size", SIZE, "--port", str(port), "--log-level", "debug"]
    with open("/dev/full", "w") as nowhere:
        process = subprocess.Popen([sys.executable, "-m", "qkernels.serve", *words], stderr=nowhere)
    try:

        def answers() -> bool:
            assert process.poll() is None
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=20) as wire:
                    wire.sendall(ASK)
                    return wire.recv(100).startswith(b"HTTP/1.1 200")
            except OSError:
                return False

        wait_for(answers)
        assert all(answers() for _ in range(20))
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


def test_a_clock_that_jumps_changes_no_time_limit(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, jump = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + jump[0])
    settings = Settings(program, "small", sizes=((1, 3, 8, 8),))
    body = WHOLE[2]
    length = re.search(rb"Inference-Header-Content-Length: (\d+)", WHOLE[0])
    assert length is not None
    headers = {"inference-header-content-length": length[1].decode()}
    with TestClient(application(settings)) as client:
        wait_for(lambda: client.get("/v2/health/ready").status_code == 200)
        for jump[0] in (-1e6, 1e6, 0.0):
            answer = client.post("/v2/models/small/infer", content=body, headers=headers)
            assert answer.status_code == 200


def test_a_killed_process_is_replaced_and_its_clients_lose_at_most_what_they_had_asked(
    program: Path,
) -> None:
    clients = 16
    with serving(program, "--size", SIZE) as server:
        killed: list[float] = []

        def kill() -> None:
            killed.append(time.perf_counter())
            os.kill(server.child, signal.SIGKILL)

        found = under_load(server, clients, 1.5, kill)
        got = statuses(found)
        assert set(got) <= {200, 503, load.CLOSED} and got[load.CLOSED] <= clients
        wait_for(lambda: metric(server, "qkernels_restarts_total") == 1)
        again = under_load(server, clients, 0.5, lambda: None)
        assert set(statuses(again)) == {200}
        assert any("SIGKILL" in line["message"] for line in server.lines)


def test_sigterm_under_load_answers_what_has_come_and_exits_with_0(program: Path) -> None:
    with serving(program, "--size", SIZE) as server:
        told: list[float] = []

        def terminate() -> None:
            told.append(time.perf_counter())
            server.process.terminate()

        found = under_load(server, 16, 1.0, terminate)
        assert server.process.wait(20) == 0
    before = [status for sent, _, status in found.answers if sent < told[0]]
    assert len(before) >= 16 and set(before) == {200}
    assert set(statuses(found)) == {200, load.CLOSED}


def test_without_its_parent_a_serving_process_ends(program: Path) -> None:
    with serving(program, "--size", SIZE) as server:
        server.process.kill()

        def is_free() -> bool:
            try:
                socket.create_server(address(server)).close()
            except OSError:
                return False
            return True

        wait_for(is_free)
