"""What a connection may do before it has said who it is: raw bytes against the limits at the door."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import re
import resource
import shutil
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx2 as httpx
import pytest
import uvicorn
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st
from serve_process import Served, serving
from served_nets import SIZE
from uvicorn.server import ServerState

from qkernels.serve import Settings, application
from qkernels.serve.door import Door

INFER = b"POST /v2/models/small/infer HTTP/1.1\r\nHost: x\r\n"
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(scope="module")
def patient(program: Path) -> Iterator[Served]:
    """Its token is secret, and it waits a second for headers."""
    words = ("--size", SIZE, "--timeout", 1, "--max-body", 1)
    with serving(program, *words, QKERNELS_TOKEN="secret") as server:
        yield server


def wire(server: Served) -> socket.socket:
    host, port = server.address.split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def rest(connection: socket.socket) -> bytes:
    """All that still comes, up to the end."""
    return b"".join(iter(partial(connection.recv, 65536), b""))


def read_answer(connection: socket.socket) -> bytes:
    """Of GET /v2/health/live."""
    answer = b""
    while not answer.endswith(b'{"live":true}'):
        part = connection.recv(1000)
        assert part
        answer += part
    return answer


def check_error(answer: bytes, status: int) -> str:
    """It is that status as JSON, with a date, and the last of its connection. Returns the sentence."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer
    for header in (b"connection: close", b"content-type: application/json", b"date: "):
        assert header in head.lower()
    assert b"content-length: %d" % len(body) in head
    message = json.loads(body)
    assert list(message) == ["error"]
    return message["error"]


def memory_mb(server: Served) -> float:
    text = Path(f"/proc/{server.child}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", text)
    assert found is not None
    return int(found[1]) / 1e3


def send_until_closed(connection: socket.socket, data: bytes, most: int) -> int:
    """How many bytes went until the server had had enough."""
    sent = 0
    try:
        while sent < most:
            connection.sendall(data)
            sent += len(data)
    except OSError:
        pass
    return sent


ENDLESS = {
    "one header": (LIVE + b"X: ", b"a" * 4096, 431),
    "headers": (LIVE, b"X: a\r\n" * 700, 431),
    "many small headers": (LIVE, b"x:\r\n" * 300, 431),
    "an address": (b"GET /", b"a" * 4096, 414),
    "a method": (b"", b"G" * 4096, 400),
    "empty lines": (b"", b"\r\n" * 2048, 431),
    "a chunk's extension": (INFER + b"Transfer-Encoding: chunked\r\n\r\n1;", b"a" * 4096, 431),
    "a trailer": (INFER + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: ", b"a" * 4096, 431),
    "trailers": (INFER + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: a\r\n" * 700, 431),
}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize("kind", ENDLESS)
def test_what_never_ends_before_a_body_is_ended_and_takes_no_memory(
    served: Served, kind: str
) -> None:
    begin, more, status = ENDLESS[kind]
    before = memory_mb(served)
    with wire(served) as connection:
        connection.sendall(begin)
        send_until_closed(connection, more, 400 * len(more))
        assert memory_mb(served) < before + 8
        connection.shutdown(socket.SHUT_WR)
        check_error(rest(connection), status)
    with served.client() as client:
        assert client.get("/v2/health/ready").status_code == 200


@pytest.mark.parametrize(("size", "status"), [(7_000, 404), (9_000, 414), (70_000, 414)])
def test_a_long_address_is_told_so_in_json(served: Served, size: int, status: int) -> None:
    with wire(served) as connection:
        head = b"GET /" + b"a" * size + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        connection.sendall(head)
        assert check_error(rest(connection), status)


def test_headers_of_almost_64_kb_are_read_in_pieces_and_the_connection_stays(
    served: Served,
) -> None:
    big = b"".join(b"X-%d: %s\r\n" % (i, b"a" * 600) for i in range(100))
    with wire(served) as connection:
        for _ in range(3):
            for part in (LIVE, big, b"\r\n"):
                connection.sendall(part)
                time.sleep(0.01)
            assert read_answer(connection).startswith(b"HTTP/1.1 200")


def test_thousands_of_pipelined_requests_in_one_piece_are_all_answered(served: Served) -> None:
    count = 4000  # 200 KB without a body between
    with wire(served) as connection:
        last = LIVE + b"Connection: close\r\n\r\n"
        connection.sendall((LIVE + b"\r\n") * (count - 1) + last)
        assert rest(connection).count(b"HTTP/1.1 200 OK") == count


@pytest.mark.parametrize(
    "noise",
    [
        b"\x16\x03\x01\x02\x00",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\r\nhello\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        INFER + b"Transfer-Encoding: chunked\r\n\r\nnine\r\n",
    ],
)
def test_what_is_no_http_is_told_so_in_json(served: Served, noise: bytes) -> None:
    with wire(served) as connection:
        connection.sendall(noise)
        assert "no HTTP" in check_error(rest(connection), 400)
    assert not any("Invalid HTTP" in line["message"] for line in served.lines)


def test_headers_that_do_not_come_and_connections_that_never_ask_are_closed(
    patient: Served,
) -> None:
    half = [wire(patient) for _ in range(50)]
    never = [wire(patient) for _ in range(50)]
    for connection in half:
        connection.sendall(LIVE)
    for connection in half:
        assert "did not come in time" in check_error(rest(connection), 408)
    for connection in never:
        assert rest(connection) == b""
    for connection in half + never:
        connection.close()


def test_headers_that_come_a_byte_at_a_time_are_late_all_the_same(patient: Served) -> None:
    began = time.monotonic()
    with wire(patient) as connection:
        connection.settimeout(0.05)
        connection.sendall(LIVE + b"X: ")
        answer = b""
        while not answer:
            assert time.monotonic() < began + 30
            try:
                connection.sendall(b"a")
                answer = connection.recv(1000)
            except TimeoutError:
                pass
        check_error(answer, 408)


def test_a_body_behind_its_answer_is_not_read_for_ever(patient: Served) -> None:
    with wire(patient) as connection:
        connection.settimeout(0.05)
        connection.sendall(INFER + b"Content-Length: 1000000000\r\n\r\n")
        answer, began, is_open = b"", time.monotonic(), True
        while is_open:
            assert time.monotonic() < began + 30
            try:
                connection.sendall(b"a")
                got = connection.recv(1000)
                is_open, answer = bool(got), answer + got
            except TimeoutError:
                pass
            except ConnectionError:
                is_open = False
        assert answer.startswith(b"HTTP/1.1 401")


def test_an_idle_connection_stays_as_long_as_keep_alive_says(program: Path) -> None:
    words = ("--size", SIZE, "--timeout", 1)
    with serving(program, *words) as long, serving(program, *words, "--keep-alive", 1) as short:
        connections = [wire(server) for server in (long, short)]
        for connection in connections:
            connection.sendall(LIVE + b"\r\n")
            assert read_answer(connection).startswith(b"HTTP/1.1 200")
        assert rest(connections[1]) == b""  # closed by the server, 75 s is the default
        time.sleep(2.5)
        connections[0].sendall(LIVE + b"\r\n")
        assert connections[0].recv(1000).startswith(b"HTTP/1.1 200")
        for connection in connections:
            connection.close()


def connections(server: Served) -> float:
    with server.client() as client:
        client.headers["authorization"] = "Bearer secret"
        text = client.get("/metrics").text
    found = re.search(r"^qkernels_connections (\S+)$", text, re.MULTILINE)
    assert found is not None
    return float(found[1])


def wait_until_alone(server: Served) -> None:
    until = time.monotonic() + 60
    while connections(server) > 1:
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize(
    "ask", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n\r\nno HTTP"]
)
def test_a_client_that_never_reads_its_answers_is_given_up(patient: Served, ask: bytes) -> None:
    with wire(patient) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(0.2)
        with contextlib.suppress(OSError):  # the server stops reading, as its answers are not read
            for _ in range(200_000):
                connection.sendall(ask)
        wait_until_alone(patient)


def test_what_a_client_has_not_read_does_not_keep_its_connection_open(patient: Served) -> None:
    ask = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    waiting = []
    for count in range(1, 60, 4):  # some of which end below what makes the server wait
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        host, port = patient.address.split(":")
        connection.connect((host, int(port)))
        connection.sendall(ask * count + b"no HTTP\r\n\r\n")
        waiting.append(connection)
    wait_until_alone(patient)
    for connection in waiting:
        connection.close()


@pytest.mark.parametrize("size", [2_000_000, 30_000_000])
def test_a_body_that_is_too_large_is_told_so_to_who_sends_all_of_it_first(
    served: Served, size: int
) -> None:
    request = urllib.request.Request(
        f"{served.url}/v2/models/small/infer", bytes(size), method="POST"
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=20)
    assert refused.value.code == 413
    assert "larger than 100000 bytes" in json.loads(refused.value.read())["error"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/v2/models/small", "GET, HEAD"),
        ("GET", "/v2/models/small/infer", "POST"),
        ("DELETE", "/classify", "GET, HEAD, POST"),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(
    served: Served, method: str, path: str, allowed: str
) -> None:
    with served.client() as client:
        answer = client.request(method, path)
    assert answer.status_code == 405 and list(answer.json()) == ["error"]
    assert sorted(answer.headers["allow"].split(", ")) == allowed.split(", ")


def test_a_stray_upgrade_is_answered_as_if_it_had_not_been_asked_and_logs_nothing(
    served: Served,
) -> None:
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAM\r\n"
    lines = len(served.lines)
    with wire(served) as connection:
        connection.sendall(LIVE + upgrade + b"\r\n")
        assert rest(connection).startswith(b"HTTP/1.1 200")
    with wire(served) as connection:
        connection.sendall(INFER + upgrade + b"Content-Length: 2\r\n\r\n{}")
        assert "cannot upgrade" in check_error(rest(connection), 400)
    assert len(served.lines) == lines


def test_identity_is_no_encoding(served: Served) -> None:
    with served.client() as client:
        answer = client.post(
            "/v2/models/small/infer", content=b"", headers={"content-encoding": "identity"}
        )
        assert answer.status_code == 400
        answer = client.post(
            "/v2/models/small/infer", content=b"", headers={"content-encoding": "br"}
        )
        assert answer.status_code == 415


def few_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))


def test_without_descriptors_idle_connections_make_room_and_it_is_said_once(program: Path) -> None:
    words = ("--size", SIZE, "--timeout", 30)
    with serving(program, *words, before=few_files) as server:
        idle = [wire(server) for _ in range(400)]
        for _ in range(20):  # new clients are served meanwhile
            assert httpx.get(f"{server.url}/v2/health/ready", timeout=20).status_code == 200
        busy = []
        for _ in range(64):
            connection = wire(server)
            connection.sendall(INFER + b"Content-Length: 100\r\n\r\n")
            busy.append(connection)
        with wire(server) as connection:
            connection.sendall(LIVE + b"\r\n")
            answer = rest(connection)
            assert "too many connections" in check_error(answer, 503)
        for connection in idle + busy:
            connection.close()
        wait_until_alone(server)
        text = httpx.get(server.url + "/metrics", timeout=20).text
        assert re.search(r'connections_ended_total{reason="no room"} [1-9]', text)
        said = [line for line in server.lines if "connections are open, as many" in line["message"]]
        assert 1 <= len(said) <= 2  # once when they were idle, once when they were busy
        assert not any(line["level"] == "error" for line in server.lines)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_a_tls_handshake_that_does_not_come_is_given_up(program: Path, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    subprocess.run(
        [*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True
    )
    words = ("--size", SIZE, "--timeout", 1, "--certificate", certificate, "--key", key)
    with serving(program, *words) as server:
        half = [wire(server) for _ in range(30)]
        for i, connection in enumerate(half):
            connection.sendall(
                b"\x16\x03\x01\x02\x00\x01"[: i % 7]
            )  # the beginning of a ClientHello
        trust = ssl.create_default_context(cafile=certificate)
        trust.check_hostname = False
        assert (
            httpx.get(f"{server.url}/v2/health/live", verify=trust, timeout=20).status_code == 200
        )
        for connection in half:
            rest(connection)  # it ends
            connection.close()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                LIVE,
                b"\r\n",
                INFER,
                b"Content-Length: 3\r\n",
                b"abc",
                b"X: y\r\n",
                b"0\r\n",
                b"Transfer-Encoding: chunked\r\n",
                b"Expect: 100-continue\r\n",
                b"\x00",
                b"Connection: close\r\n",
                b"Connection: upgrade\r\nUpgrade: x\r\n",
            ]
        ),
        max_size=12,
    ),
    st.booleans(),
)
def test_any_mixture_of_http_is_answered_or_closed_and_nothing_stays_inside(
    served: Served, parts: list[bytes], is_whole: bool
) -> None:
    with wire(served) as connection:
        try:
            for part in [b"".join(parts)] if is_whole else parts:
                connection.sendall(part)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        try:
            answer = rest(connection)
        except ConnectionResetError:
            answer = b""
    assert not answer or answer.startswith(b"HTTP/1.1 ")
    assert b" 500 " not in answer.partition(b"\r\n")[0]
    with served.client() as client:
        assert client.get("/v2/health/ready").status_code == 200


def test_a_connection_that_has_ended_leaves_nothing_for_the_garbage_collector(
    program: Path,
) -> None:
    app = application(Settings(program, "small", sizes=((1, 3, 8, 8),)))
    config = uvicorn.Config(app, log_config=None)
    config.load()
    doors = weakref.WeakSet[Door]()

    def made() -> Door:
        door = Door(config, ServerState(), {}, inside=app.state.inside)
        doors.add(door)
        return door

    async def use() -> None:
        server = await asyncio.get_running_loop().create_server(made, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        asked = (LIVE + b"\r\n", LIVE, b"no HTTP\r\n\r\n", INFER + b"Content-Length: 9\r\n\r\n")
        for ask in asked:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(ask)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reader.read(1000), 0.1)
            assert doors
            writer.close()
        del reader, writer
        for _ in range(100):
            await asyncio.sleep(0.01)
        server.close()

    gc.collect()
    gc.disable()
    try:
        uvloop.run(use())
        assert not doors
    finally:
        gc.enable()


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="reads /proc")
def test_after_all_that_no_connection_is_left(served: Served) -> None:
    wait_until_alone(served)
    assert "".join(str(line) for line in served.lines if line["level"] == "error") == ""
