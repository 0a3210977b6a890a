"""Whatever comes in: an answer as the protocol has it, and the server goes on."""

from __future__ import annotations

import copy
import json
import re
import socket
import time
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serve_process import Served, serving
from served_nets import SIZE

INFER = "/v2/models/small/infer"
GOOD: dict[str, Any] = {
    "id": "1",
    "inputs": [
        {"name": "input", "shape": [1, 3, 8, 8], "datatype": "FP32", "data": [0.5] * 192}
    ],
    "outputs": [{"name": "output", "parameters": {"binary_data": False}}],
    "parameters": {"timeout": 1_000_000},
}  # fmt: skip
fuzz = settings(max_examples=150, deadline=None)

leaves = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["input", "output", "FP32", "../../etc/passwd", 2**63, -(2**70), 1e308])
)  # fmt: skip
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@st.composite
def almost_good(draw: st.DrawFn) -> Any:
    """The good request with one to three of its parts changed, dropped, doubled or added to."""
    message = copy.deepcopy(GOOD)
    for _ in range(draw(st.integers(1, 3))):
        place: Any = message
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys[:6]))
            inside = place[key]
            if isinstance(inside, (dict, list)) and inside and draw(st.booleans()):
                place = inside
                continue
            change = draw(st.sampled_from(["replace", "drop", "double", "add"]))
            if change == "replace":
                place[key] = draw(values)
            elif change == "drop":
                del place[key]
            elif isinstance(place, list):
                place.append(copy.deepcopy(inside) if change == "double" else draw(values))
            else:
                place[draw(st.text(max_size=6))] = draw(values)
            break
    return message


def check(answer: httpx.Response) -> None:
    assert answer.status_code in (200, 400)
    if answer.status_code == 400:
        assert list(answer.json()) == ["error"] and answer.json()["error"]
    else:
        message = json.loads(
            answer.content[: int(answer.headers.get("inference-header-content-length", 1 << 30))]
        )
        assert message["model_name"] == "small" and message["outputs"]


@pytest.fixture(scope="module")
def client(served: Served) -> Any:
    with served.client() as client:
        yield client


@fuzz
@given(almost_good() | values)
def test_any_json_is_answered(client: httpx.Client, message: Any) -> None:
    answer = client.post(INFER, content=json.dumps(message))
    if answer.status_code == 504:  # right only for who leaves no time
        assert 0 < message["parameters"]["timeout"] < 1_000_000 and answer.json()["error"]
        return
    check(answer)


@fuzz
@given(
    st.binary(max_size=200)
    | st.builds(lambda n, b: json.dumps(GOOD).encode()[:n] + b, st.integers(0, 900), st.binary(max_size=900)),
    st.none() | st.integers(-5, 1500).map(str) | st.text(st.characters(min_codepoint=33, max_codepoint=126)),
)  # fmt: skip
def test_any_bytes_are_answered(client: httpx.Client, body: bytes, length: str | None) -> None:
    headers = {} if length is None else {"Inference-Header-Content-Length": length}
    check(client.post(INFER, content=body, headers=headers))


@pytest.mark.parametrize("body", [b"[" * 50_000, b'{"inputs":' * 9_000, b'{"id":"\xff"}', b"1" * 90_000])  # fmt: skip
def test_json_that_breaks_parsers_is_answered(client: httpx.Client, body: bytes) -> None:
    answer = client.post(INFER, content=body)
    assert answer.status_code == 400 and "not as the protocol has it" in answer.json()["error"]


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40))
def test_any_address_is_compared_and_nothing_else(client: httpx.Client, name: str) -> None:
    quoted = "".join(f"%{ord(c):02x}" for c in name)
    answer = client.get(f"/v2/models/x{quoted}")
    assert answer.status_code == 404 and list(answer.json()) == ["error"]


def test_a_huge_body_is_refused_before_it_is_read(served: Served, client: httpx.Client) -> None:
    host, port = served.address.split(":")
    with socket.create_connection((host, int(port)), timeout=20) as wire:
        wire.sendall(
            f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {10**12}\r\n\r\n".encode()
        )
        assert wire.recv(100).startswith(b"HTTP/1.1 413")
    with socket.create_connection((host, int(port)), timeout=20) as wire:
        wire.sendall(
            f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        wire.sendall(b"20000\r\n" + bytes(0x20000) + b"\r\n")  # and never the last chunk
        assert wire.recv(100).startswith(b"HTTP/1.1 413")
    check(client.post(INFER, json=GOOD))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_clients_that_vanish_leave_nothing_behind(
    served: Served, client: httpx.Client, data: st.DataObject
) -> None:
    body = json.dumps(GOOD).encode()
    whole = (
        f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    )
    host, port = served.address.split(":")
    with socket.create_connection((host, int(port)), timeout=20) as wire:
        wire.sendall(whole[: data.draw(st.integers(0, len(whole)))])
        if data.draw(st.booleans()):  # a reset instead of an end
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    check(client.post(INFER, json=GOOD))


@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=1, max_size=300))
def test_bytes_that_are_no_http_do_not_stop_the_server(
    served: Served, client: httpx.Client, noise: bytes
) -> None:
    host, port = served.address.split(":")
    with socket.create_connection((host, int(port)), timeout=20) as wire:
        wire.sendall(noise)
    check(client.post(INFER, json=GOOD))


def test_after_all_that_nothing_is_in_flight_and_nothing_failed(
    served: Served, client: httpx.Client
) -> None:
    until = time.monotonic() + 15
    while True:
        text = client.get("/metrics").text
        if 'qkernels_requests_in_flight{model="small"} 0.0' in text or time.monotonic() > until:
            break
        time.sleep(0.05)
    assert (
        'qkernels_requests_in_flight{model="small"} 0.0' in text
        and 'qkernels_queue_rows{model="small"} 0.0' in text
    )
    assert not re.search(r'requests_total\{status="5..', text)
    assert [line for line in served.lines if line["level"] == "error"] == []


def test_a_body_that_never_ends_is_given_up(program: Path) -> None:
    with serving(program, "--size", SIZE, "--timeout", 0.3) as server:
        host, port = server.address.split(":")
        with socket.create_connection((host, int(port)), timeout=20) as wire:
            wire.sendall(
                f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode()
            )
            assert wire.recv(100).startswith(b"HTTP/1.1 408")
