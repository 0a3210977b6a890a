"""Overload, killed processes and SIGTERM under load: every request is answered, refused, or its connection closed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import uvloop
from serve_process import Served, serving
from served_nets import SIZE

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import load

X = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
ASK = load.infer(X, "small")
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
