"""What people expect of a server: CORS, compression, UNIX sockets, several pictures, request ids and traces."""

from __future__ import annotations

import base64
import gzip
import shutil
import socket
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from encoded_pictures import encoded, quadrants
from PIL import Image
from serve_process import Served, serving
from served_nets import SIZE
from tritonclient import http as triton

from qkernels.program import Program
from qkernels.serve.encodings import accepted
from qkernels.serve.traces import traced

X = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
INFER = "/v2/models/small/infer"
ORIGIN = "https://a.example"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def message(x: np.ndarray = X) -> dict[str, object]:
    one = {"name": "input", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}
    return {"inputs": [one]}


def given(x: np.ndarray = X) -> list[triton.InferInput]:
    one = triton.InferInput("input", list(x.shape), "FP32")
    one.set_data_from_numpy(x)
    return [one]


@pytest.fixture(scope="module")
def pictures(classifier: Path) -> Iterator[Served]:
    with serving(classifier, "--max-batch", 4) as server:
        yield server


@pytest.mark.parametrize("way", ["gzip", "deflate"])
def test_tritons_client_may_compress_and_ask_for_compressed_answers(
    served: Served, program: Path, way: str
) -> None:
    client = triton.InferenceServerClient(served.address)
    result = client.infer(
        "small", given(), request_compression_algorithm=way, response_compression_algorithm=way
    )
    assert np.array_equal(result.as_numpy("output"), Program.load(program)(X))


def test_a_long_answer_is_compressed_for_who_takes_it_and_a_short_one_is_not(
    served: Served,
) -> None:
    many = np.zeros((8, 3, 8, 8), np.float32)
    with served.client() as client:
        long = message(many) | {"id": "i" * 2000}
        for takes, coding in {"gzip": "gzip", "br, gzip;q=0.5": "gzip", "deflate": "deflate", "gzip;q=0": None,
                              "identity": None, "gzip;q=1.2.3": "gzip", "": None}.items():  # fmt: skip
            answer = client.post(INFER, json=long, headers={"accept-encoding": takes})
            assert answer.headers.get("content-encoding") == coding
            assert answer.json()["id"] == "i" * 2000
        short = client.post(INFER, json=message(), headers={"accept-encoding": "gzip"})
        assert "content-encoding" not in short.headers


@pytest.mark.parametrize(
    ("body", "coding", "status", "sentence"),
    [
        (gzip.compress(bytes(10**7), mtime=0), "gzip", 413, "larger than 100000 bytes"),
        (zlib.compress(bytes(10**7)), "deflate", 413, "larger than 100000 bytes"),
        (gzip.compress(b"{}", mtime=0)[:-3], "gzip", 400, "cut off"),
        (gzip.compress(b"{}", mtime=0) + b"more", "gzip", 400, "goes on"),
        (b"{}", "gzip", 400, "not compressed as"),
        (b"", "gzip", 400, "cut off"),
        (b"{}", "br", 415, "'br' is not taken"),
        (b"{}", "gzip, gzip", 415, "is not taken"),
    ],
)
def test_what_is_wrong_with_a_compressed_body_is_told(
    served: Served, body: bytes, coding: str, status: int, sentence: str
) -> None:
    with served.client() as client:
        answer = client.post(INFER, content=body, headers={"content-encoding": coding})
    assert answer.status_code == status and sentence in answer.json()["error"]


def test_web_pages_of_the_named_origins_may_ask_and_others_may_not(program: Path) -> None:
    words = (
        "--size",
        SIZE,
        "--allow-origin",
        ORIGIN,
        "--max-batch",
        1,
        "--queue",
        1,
        "--max-delay",
        0,
    )
    with serving(program, *words, QKERNELS_TOKEN="secret") as server, server.client() as client:
        asks = {
            "origin": ORIGIN,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization",
        }
        allowed = client.options(INFER, headers=asks)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == ORIGIN
        assert "authorization" in allowed.headers["access-control-allow-headers"].lower()
        refused = client.options(INFER, headers=asks | {"origin": "https://b.example"})
        assert refused.status_code == 400 and "access-control-allow-origin" not in refused.headers
        for headers in ({"authorization": "Bearer secret"}, {}):  # also of a refusal
            answer = client.get("/v2", headers={"origin": ORIGIN} | headers)
            assert answer.headers["access-control-allow-origin"] == ORIGIN
    with (
        serving(program, "--size", SIZE, "--allow-origin", "*") as server,
        server.client() as client,
    ):
        assert (
            client.get("/v2", headers={"origin": ORIGIN}).headers["access-control-allow-origin"]
            == "*"
        )


def test_without_the_flag_no_origin_is_allowed(served: Served) -> None:
    with served.client() as client:
        assert (
            "access-control-allow-origin"
            not in client.get("/v2", headers={"origin": ORIGIN}).headers
        )


def test_the_refusal_of_a_full_server_says_whose_page_may_read_it(program: Path) -> None:
    words = ("--size", SIZE, "--allow-origin", ORIGIN, "--max-batch", 1, "--queue", 1)
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nOrigin: {ORIGIN}\r\nContent-Length: 9\r\n\r\n".encode()
    with serving(program, *words) as server:
        host, port = server.address.split(":")
        inside = [socket.create_connection((host, int(port)), timeout=20) for _ in range(3)]
        for wire in inside:
            wire.sendall(head)
        answers = []
        for wire in inside:
            wire.settimeout(1)
            try:
                answers.append(wire.recv(1000))
            except TimeoutError:
                wire.close()
        assert len(answers) == 1 and answers[0].startswith(b"HTTP/1.1 503")
        assert f"access-control-allow-origin: {ORIGIN}".encode() in answers[0]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_a_unix_socket_is_listened_on_and_a_stale_one_is_replaced(
    program: Path, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    for _ in range(2):  # the first server is killed, and leaves its socket
        with serving(program, "--size", SIZE, "--unix", path):
            command = [
                "curl",
                "-s",
                "--max-time",
                "20",
                "--unix-socket",
                path,
                "http://x/v2/health/ready",
            ]
            done = subprocess.run(command, capture_output=True, timeout=60)
            assert done.stdout == b'{"ready":true}'
            with (
                pytest.raises(AssertionError) as ended,
                serving(program, "--size", SIZE, "--unix", path),
            ):
                pass
            assert "somebody listens there" in ended.value.args[0][-1]["message"]
    (tmp_path / "file").write_text("no socket")
    with (
        pytest.raises(AssertionError) as ended,
        serving(program, "--size", SIZE, "--unix", tmp_path / "file"),
    ):
        pass
    assert str(tmp_path / "file") in ended.value.args[0][-1]["message"]
    assert (tmp_path / "file").read_text() == "no socket"


def several() -> list[bytes]:
    turned = quadrants().transpose(Image.Transpose.ROTATE_180)
    return [encoded(quadrants()), encoded(turned, "JPEG"), encoded(quadrants(), "WEBP")]


def test_several_pictures_have_the_answers_that_each_has_alone(pictures: Served) -> None:
    with pictures.client() as client:
        alone = [client.post("/classify", content=body).json() for body in several()]
        form = client.post(
            "/classify", files=[("x", (f"{i}", body)) for i, body in enumerate(several())]
        )
        texts = [base64.b64encode(body).decode() for body in several()]
        texts[0] = "data:image/png;base64," + texts[0]
        in_json = client.post("/classify/classifier", json={"pictures": texts})
        for answer in (form.raise_for_status().json(), in_json.raise_for_status().json()):
            assert answer.keys() == {"model_name", "model_version", "pictures", "milliseconds"}
            for got, want in zip(answer["pictures"], alone, strict=True):
                assert got["label"] == want["label"]
                assert got["probability"] == pytest.approx(want["probability"], rel=1e-6)


def test_top_k_is_as_many_as_are_asked_for(pictures: Served) -> None:
    body = several()[0]
    text = base64.b64encode(body).decode()
    with pictures.client() as client:
        assert len(client.post("/classify?top_k=2", content=body).json()["top"]) == 2
        assert len(client.post("/classify?top_k=99", content=body).json()["top"]) == 5
        form = client.post("/classify", files={"x": ("x", body)}, data={"top_k": "1"})
        assert len(form.json()["pictures"][0]["top"]) == 1
        asked = client.post("/classify", json={"pictures": [text], "top_k": 3})
        assert len(asked.json()["pictures"][0]["top"]) == 3


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        ({"content": b"x", "params": {"top_k": "0"}}, 400, "top_k is '0'"),
        ({"content": b"x", "params": {"top_k": "9" * 30}}, 400, "no whole number"),
        ({"json": {"pictures": []}}, 400, "0 pictures came; from 1 to 4"),
        ({"json": {"pictures": ["aGk="] * 5}}, 400, "5 pictures came"),
        ({"json": {"pictures": ["?"]}}, 400, "no base64"),
        ({"json": {"pictures": ["aGk="]}}, 415, "no PNG, JPEG or WebP"),
        ({"json": {"colour": 1}}, 400, "unknown field `colour`"),
        ({"files": {"x": ("x", b"hello")}}, 415, "no PNG, JPEG or WebP"),
        ({"files": {"x": ("x", b"hello")}, "data": {"colour": "red"}}, 400, "a field 'colour'"),
        ({"content": b"--b\r\n", "headers": {"content-type": "multipart/form-data"}}, 415, "no boundary"),
        ({"content": b"--b\r\nx", "headers": {"content-type": "multipart/form-data; boundary=b"}}, 400, ""),
        ({"content": b"nonsense", "headers": {"content-type": "multipart/form-data; boundary=b"}}, 400, ""),
    ],
)  # fmt: skip
def test_what_is_wrong_with_pictures_is_told(
    pictures: Served, words: dict[str, object], status: int, sentence: str
) -> None:
    with pictures.client() as client:
        answer = client.post("/classify", **words)
    assert answer.status_code == status and sentence in answer.json()["error"]


def test_ids_and_traces_are_in_the_log_and_the_id_in_the_answer(program: Path) -> None:
    with (
        serving(program, "--size", SIZE, "--log-level", "debug") as server,
        server.client() as client,
    ):
        headers = {"x-request-id": "abc", "traceparent": TRACE}
        good = client.post(INFER, json=message(), headers=headers)
        bad = client.post(INFER, content=b"x", headers=headers)
        own = client.post(INFER, json=message() | {"id": "mine"}, headers=headers)
        assert good.headers["x-request-id"] == bad.headers["x-request-id"] == "abc"
        assert own.json()["id"] == "mine"
    lines = [line for line in server.lines if "trace_id" in line]
    assert [line["id"] for line in lines] == ["abc", "abc", "mine"]
    assert {line["trace_id"] for line in lines} == {TRACE.split("-")[1]}
    assert {line["parent_id"] for line in lines} == {TRACE.split("-")[2]}


@pytest.mark.parametrize(
    "trace",
    ["", "00-x", TRACE.upper(), "00-" + "0" * 32 + "-b7ad6b7169203331-01", TRACE + "x", TRACE[:-1]],
)
def test_what_is_no_trace_is_left_out(trace: str) -> None:
    assert traced({"traceparent": trace, "x-request-id": "a" * 300}) == {}
    assert traced({"traceparent": TRACE, "x-request-id": "a"})["id"] == "a"


@pytest.mark.parametrize(
    "header", ["", "gzip;q=0, deflate;q=0.0", "*", "gzipped", ";;;,,,", "gzip;q=x"]
)
def test_a_header_that_takes_nothing_gets_the_answer_as_it_is(header: str) -> None:
    assert accepted(header) is None
