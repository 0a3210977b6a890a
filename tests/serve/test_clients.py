"""Clients of the protocol that people have: Triton's, KServe's, MLServer's types, and what loads a server."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import numpy as np
import pytest
from serve_process import Served, serving
from served_nets import SIZE
from stub_packages import part
from tritonclient import http as triton
from tritonclient.http import aio
from tritonclient.utils import InferenceServerException

from qkernels.image_input import ImageInput
from qkernels.program import Program

X = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
INFER = "/v2/models/small/infer"
ONE = json.dumps(
    {"inputs": [{"name": "input", "shape": [1, 3, 8, 8], "datatype": "FP32", "data": [0.5] * 192}]}
)


@pytest.fixture
def want(program: Path) -> np.ndarray:
    return Program.load(program)(X)


@pytest.fixture(scope="module")
def pictures(classifier: Path) -> Iterator[Served]:
    with serving(classifier) as server:
        yield server


def message(**changed: object) -> dict[str, object]:
    given = {
        "name": "input",
        "shape": list(X.shape),
        "datatype": "FP32",
        "data": X.ravel().tolist(),
    }
    return {"inputs": [given]} | changed


def given(values: np.ndarray, datatype: str = "FP32", binary: bool = True) -> triton.InferInput:
    one = triton.InferInput("input", list(values.shape), datatype)
    one.set_data_from_numpy(values, binary_data=binary)
    return one


def test_tritons_client_may_name_all_that_changes_no_answer(
    served: Served, want: np.ndarray
) -> None:
    client = triton.InferenceServerClient(served.address)
    result = client.infer(
        "small",
        [given(X)],
        sequence_id=7,
        priority=3,
        timeout=5_000_000,
        parameters={"trace": "00-abc", "user": 1.5},
    )
    assert np.array_equal(result.as_numpy("output"), want)
    with pytest.raises(InferenceServerException, match="keeps no state"):
        client.infer("small", [given(X)], sequence_id=7, sequence_start=True)


@pytest.mark.parametrize("binary", [True, False])
def test_tritons_client_gets_classes(pictures: Served, classifier: Path, binary: bool) -> None:
    client = triton.InferenceServerClient(pictures.address)
    asked = triton.InferRequestedOutput("output", binary_data=binary, class_count=2)
    got = client.infer("classifier", [given(X)], outputs=[asked]).as_numpy("output")
    y = Program.load(classifier)(X)
    for row, texts in zip(y, got, strict=True):
        for i, text in zip(np.argsort(-row)[:2], texts, strict=True):
            said = text.decode() if isinstance(text, bytes) else text
            assert said == f"{row[i]:f}:{i}:{'vwxyz'[i]}"


def test_tritons_asyncio_client_gets_the_same_bits(served: Served, want: np.ndarray) -> None:
    async def ask() -> list[np.ndarray]:
        async with aio.InferenceServerClient(served.address) as client:
            assert await client.is_server_ready()
            results = await asyncio.gather(*(client.infer("small", [given(X)]) for _ in range(8)))
            return [result.as_numpy("output") for result in results]

    assert all(np.array_equal(y, want) for y in asyncio.run(ask()))


@pytest.mark.parametrize("binary", [True, False])
def test_kserves_client_gets_the_same_bits(served: Served, want: np.ndarray, binary: bool) -> None:
    """In a process of its own: its messages for gRPC have the names of Triton's."""
    script = """
import asyncio, json, sys, numpy as np
from stub_packages import part
client, types = part("kserve.inference_client"), part("kserve.protocol.infer_type")
x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
one = types.InferInput("input", list(x.shape), "FP32", parameters={"content_type": "np"})
one.set_data_from_numpy(x, binary_data=sys.argv[2] == "True")
asked = types.InferRequest("small", [one], "an id", parameters={"who": "me"})
async def ask(url):
    rest = client.InferenceRESTClient(client.RESTConfig(protocol="v2", retries=0))
    assert await rest.is_server_ready(url) and await rest.is_model_ready(url, "small")
    return await rest.infer(url, asked, model_name="small")
answer = asyncio.run(ask(sys.argv[1]))
assert answer.id == "an id"
print(json.dumps(answer.outputs[0].as_numpy().tolist()))
"""
    part("kserve.constants")
    command = [sys.executable, "-c", script, served.url, str(binary)]
    done = subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    y = np.array(json.loads(done.stdout), np.float32).reshape(want.shape)
    assert np.array_equal(y, want)


def test_mlservers_request_is_taken_and_the_answer_is_one_of_its_own(
    served: Served, want: np.ndarray
) -> None:
    types, codecs = part("mlserver.types"), part("mlserver.codecs")
    one = codecs.NumpyCodec.encode_input("input", X)
    outputs = [types.RequestOutput(name="output")]
    asked = types.InferenceRequest(
        inputs=[one], outputs=outputs, parameters=types.Parameters(content_type="np")
    )
    for text in (asked.model_dump_json(), asked.model_dump_json(exclude_none=True)):
        with served.client() as client:
            answer = client.post(INFER, content=text).raise_for_status()
        parsed = types.InferenceResponse.model_validate(answer.json())
        (output,) = parsed.outputs
        y = codecs.NumpyCodec.decode_output(output)
        assert np.array_equal(y.reshape(want.shape).astype(np.float32), want)


@pytest.mark.parametrize(
    "changed",
    [
        {
            "parameters": None,
            "outputs": None,
            "id": None,
            "model_name": None,
            "model_version": None,
        },
        {"parameters": {"timeout": 0}},
        {"parameters": {"timeout": None, "binary_data_output": None, "anything": {"at": ["all"]}}},
        {"model_name": "small", "model_version": ""},
        {"outputs": [{"name": "output", "parameters": None}]},
        {
            "outputs": [
                {"name": "output", "parameters": {"content_type": "np", "binary_data": None}}
            ]
        },
        {"parameters": {"sequence_id": 3, "sequence_start": True, "sequence_end": True}},
    ],
)
def test_what_is_null_or_changes_no_answer_is_taken(
    served: Served, want: np.ndarray, changed: dict[str, object]
) -> None:
    with served.client() as client:
        answer = client.post(INFER, json=message(**changed)).raise_for_status().json()
    y = np.array(answer["outputs"][0]["data"], np.float32).reshape(want.shape)
    assert np.array_equal(y, want)


@pytest.mark.parametrize(
    ("changed", "status", "sentence"),
    [
        ({"model_name": "other"}, 404, "no model 'other'"),
        ({"model_version": "0"}, 404, "no version '0'"),
        ({"parameters": {"timeout": -1}}, 400, "timeout"),
        ({"parameters": {"sequence_start": True}}, 400, "keeps no state"),
        (
            {"outputs": [{"name": "output", "parameters": {"shared_memory_region": "r"}}]},
            400,
            "shared memory 'r'",
        ),
        ({"outputs": [{"name": "output"}, {"name": "output"}]}, 400, "twice"),
        ({"colour": "red"}, 400, "unknown field `colour`"),
    ],
)
def test_what_would_change_the_answer_is_refused(
    served: Served, changed: dict[str, object], status: int, sentence: str
) -> None:
    with served.client() as client:
        answer = client.post(INFER, json=message(**changed))
    assert answer.status_code == status and sentence in answer.json()["error"]


def test_fp16_has_the_bits_of_its_values_as_fp32(served: Served, program: Path) -> None:
    half = X.astype(np.float16)
    result = triton.InferenceServerClient(served.address).infer("small", [given(half, "FP16")])
    want = Program.load(program)(half.astype(np.float32))
    assert np.array_equal(result.as_numpy("output"), want)
    half[0, 0, 0, 0] = np.inf
    with pytest.raises(InferenceServerException, match="beyond FP16"):
        triton.InferenceServerClient(served.address).infer("small", [given(half, "FP16")])


@pytest.mark.parametrize("binary", [True, False])
def test_pixels_have_the_bits_of_the_normalised_picture(
    pictures: Served, classifier: Path, binary: bool
) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3), np.uint8)
    client = triton.InferenceServerClient(pictures.address)
    result = client.infer("classifier", [given(pixels, "UINT8", binary)])
    described = ImageInput(**Program.load(classifier).extra["image_input"])
    x = described.normalised(pixels.transpose(0, 3, 1, 2))
    assert np.array_equal(result.as_numpy("output"), Program.load(classifier)(x))


@pytest.mark.parametrize("value", [256, -1, 0.5])
def test_pixels_that_are_no_bytes_are_refused(pictures: Served, value: float) -> None:
    one = {"name": "input", "shape": [1, 8, 8, 3], "datatype": "UINT8", "data": [value] * 192}
    with pictures.client() as client:
        answer = client.post("/v2/models/classifier/infer", json={"inputs": [one]})
    assert answer.status_code == 400 and "whole numbers from 0 to 255" in answer.json()["error"]


def test_raw_bytes_without_json_are_the_only_input(served: Served, want: np.ndarray) -> None:
    headers = {"Inference-Header-Content-Length": "0"}
    with served.client() as client:
        answer = client.post(INFER, content=X.tobytes(), headers=headers).raise_for_status()
        head = int(answer.headers["inference-header-content-length"])
        y = np.frombuffer(answer.content[head:], np.float32).reshape(want.shape)
        assert np.array_equal(y, want)
        refused = client.post(INFER, content=b"abc", headers=headers)
        assert (
            refused.status_code == 400
            and "a row of input 'input' has 768" in refused.json()["error"]
        )


def test_urllib_gets_an_answer(served: Served) -> None:
    request = urllib.request.Request(served.url + INFER, json.dumps(message()).encode())
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert json.load(answer)["model_name"] == "small"


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--http1.0"],
        ["-H", "Transfer-Encoding: chunked"],
        ["-H", "Expect: 100-continue"],
        ["--path-as-is"],
    ],
)
def test_curl_gets_an_answer(served: Served, tmp_path: Path, words: list[str]) -> None:
    body = tmp_path / "request.json"
    body.write_text(json.dumps(message()))
    command = ["curl", "-sS", "--max-time", "20", *words, "-d", f"@{body}", served.url + INFER]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    assert json.loads(done.stdout)["model_name"] == "small"


@pytest.fixture
def small_queue(program: Path) -> Iterator[Served]:
    with serving(program, "--size", SIZE, "--max-batch", 1, "--queue", 1) as server:
        yield server


@pytest.mark.skipif(shutil.which("ab") is None, reason="needs ab (apache2-utils)")
def test_ab_with_connections_kept_by_http_1_0_is_never_left_waiting(
    small_queue: Served, tmp_path: Path
) -> None:
    body = tmp_path / "request.json"
    body.write_text(ONE)
    command = [
        "ab",
        "-k",
        "-q",
        "-s",
        "20",
        "-n",
        "2000",
        "-c",
        "32",
        "-T",
        "application/json",
        "-p",
        str(body),
    ]
    done = subprocess.run(
        [*command, small_queue.url + INFER], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"Complete requests:\s+2000", done.stdout)
    assert refused(small_queue) > 0
    slowest = re.search(r"100%\s+(\d+)", done.stdout)
    assert (
        slowest is not None and int(slowest[1]) < 4000
    )  # a hanging one ends with the idle time-out


@pytest.mark.skipif(shutil.which("wrk") is None, reason="needs wrk")
def test_wrk_sees_no_broken_connection(small_queue: Served, tmp_path: Path) -> None:
    script = tmp_path / "post.lua"
    script.write_text(f"wrk.method = 'POST'\nwrk.body = '{ONE}'\n")
    command = ["wrk", "-t1", "-c32", "-d1s", "-s", str(script), small_queue.url + INFER]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "Socket errors" not in done.stdout, done.stdout
    assert refused(small_queue) > 0


def refused(server: Served) -> float:
    text = httpx.get(server.url + "/metrics", timeout=20).text
    found = re.search(r'requests_total\{[^}]*status="503"\} (\S+)', text)
    return float(found[1]) if found else 0.0


NGINX = """
daemon off; error_log stderr; pid {folder}/pid;
events {{ worker_connections 64; }}
http {{
  access_log off; client_body_buffer_size 1m; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream model {{ server {address}; keepalive 4; }}
  server {{ listen 127.0.0.1:{port};
    location / {{ proxy_pass http://model; proxy_http_version 1.1; proxy_set_header Connection ""; }} }}
}}
"""


@pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx")
def test_nginx_in_front_keeps_its_connections(served: Served, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = tmp_path / "nginx.conf"
    config.write_text(NGINX.format(folder=tmp_path, address=served.address, port=port))
    command = ["nginx", "-c", str(config), "-p", str(tmp_path)]
    proxy = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        transport = httpx.HTTPTransport(retries=20)
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", transport=transport, timeout=20
        ) as client:
            for _ in range(200):
                assert client.post(INFER, json=message()).status_code == 200
            assert client.post(INFER, content=bytes(200_000)).status_code == 413
    finally:
        proxy.terminate()
        _, log = proxy.communicate(timeout=20)
    assert "error" not in log.replace("error_log", ""), log
