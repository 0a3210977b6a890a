"""Triton's own client, unchanged, and the protocol's answers to what it cannot send."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from serve_process import Served, serving
from tritonclient import http as triton
from tritonclient.utils import InferenceServerException

from qkernels.program import Program


def images(*size: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(size).astype(np.float32)


def tensor(name: str, values: np.ndarray, binary: bool) -> triton.InferInput:
    given = triton.InferInput(name, list(values.shape), "FP32")
    given.set_data_from_numpy(values, binary_data=binary)
    return given


@pytest.fixture
def client(served: Served) -> triton.InferenceServerClient:
    return triton.InferenceServerClient(served.address)


def test_the_client_finds_a_server_that_is_live_and_ready(
    client: triton.InferenceServerClient,
) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("small")
    assert not client.is_model_ready("other")
    assert client.get_server_metadata()["extensions"][:2] == [
        "binary_tensor_data",
        "classification",
    ]


def test_metadata_say_what_the_model_takes_and_its_version_is_an_address(
    client: triton.InferenceServerClient,
) -> None:
    found = client.get_model_metadata("small")
    (version,) = found["versions"]
    assert found == client.get_model_metadata("small", version)
    assert client.is_model_ready("small", version) and not client.is_model_ready("small", "0")
    assert found["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 3, 8, 8]}]
    assert found["outputs"] == [{"name": "output", "datatype": "FP32", "shape": [-1, 5]}]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_answers_are_the_bits_of_the_program(
    client: triton.InferenceServerClient,
    program: Path,
    rows: int,
    binary_in: bool,
    binary_out: bool | None,
) -> None:
    x = images(rows, 3, 8, 8)
    outputs = binary_out if binary_out is None else [
        triton.InferRequestedOutput("output", binary_data=binary_out)
    ]  # fmt: skip
    result = client.infer(
        "small", [tensor("input", x, binary_in)], outputs=outputs, request_id="a b"
    )
    assert np.array_equal(result.as_numpy("output"), Program.load(program)(x))
    answer = result.get_response()
    assert answer["id"] == "a b" and answer["model_name"] == "small"


def test_several_inputs_in_any_order_and_some_of_the_outputs(two_headed: Path) -> None:
    sizes = "--size", "1,3,8,8", "--size", "1,2,8,8"
    x, y = images(2, 3, 8, 8), images(2, 2, 8, 8)
    with serving(two_headed, *sizes, "--name", "two heads") as server:
        client = triton.InferenceServerClient(server.address)
        given = [tensor("input_1", y, True), tensor("input_0", x, True)]
        result = client.infer("two heads", given)
        for i, want in enumerate(Program.load(two_headed)(x, y)):
            assert np.array_equal(result.as_numpy(f"output_{i}"), want)
        one = client.infer("two heads", given, outputs=[triton.InferRequestedOutput("output_1")])
        assert [o["name"] for o in one.get_response()["outputs"]] == ["output_1"]
        with pytest.raises(InferenceServerException, match="differ in their batch"):
            client.infer("two heads", [tensor("input_1", y, True), tensor("input_0", x[:1], False)])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"name": "x"}, "no input 'x'; the model takes input"),
        ({"datatype": "INT8"}, "datatype 'INT8'; FP32 is needed"),
        ({"shape": [1, 3, 8]}, r"shape \[1, 3, 8\]; \[N, 3, 8, 8\] with N from 1 to 8"),
        ({"shape": [9, 3, 8, 8]}, "N from 1 to 8"),
        ({"shape": [0, 3, 8, 8]}, "N from 1 to 8"),
        ({"shape": [-1, 3, 8, 8]}, "N from 1 to 8"),
        ({"shape": []}, "N from 1 to 8"),
        ({"data": [0.0] * 191}, r"shape \[191\]"),
        ({"data": [[0.0], [0.0, 1.0]]}, "not numbers"),
        ({"data": ["a"] * 192}, "not numbers"),
        ({"data": [None] * 192}, "not numbers"),
        ({"data": [1e39] * 192}, "NaN, infinity or a number beyond FP32"),
        ({"data": None}, "neither data nor"),
        ({"data": "0"}, r"Expected `array \| null`.*inputs\[0\].data"),
        ({"parameters": {"shared_memory_region": "a"}}, "in the shared memory 'a', which is not taken"),
        ({"datatype": "UINT8"}, "no image_input"),
        ({"parameters": {"binary_data_size": 768}}, "both data and binary"),
    ],
)  # fmt: skip
def test_a_wrong_input_is_named(served: Served, change: dict[str, object], sentence: str) -> None:
    good = {"name": "input", "shape": [1, 3, 8, 8], "datatype": "FP32", "data": [0.0] * 192}
    with served.client() as client:
        answer = client.post("/v2/models/small/infer", json={"inputs": [good | change]})
        assert answer.status_code == 400
        assert re.search(sentence, answer.json()["error"])
        assert client.post("/v2/models/small/infer", json={"inputs": [good]}).status_code == 200


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (("POST", "/v2/models/small"), 405),
        (("GET", "/v2/models/small/infer"), 405),
        (("GET", "/v2/models/other"), 404),
        (("GET", "/v2/models/..%2f..%2fetc%2fpasswd"), 404),
        (("GET", "/v2/models/small/versions/0"), 404),
        (("POST", "/v2/models/small/versions/0/infer"), 404),
        (("GET", "/nothing"), 404),
        (("GET", "/v2/models/small/"), 404),
        (("POST", "/v2/models/small/infer"), 400),
    ],
)
def test_every_refusal_is_an_error_in_json(
    served: Served, request_: tuple[str, str], status: int
) -> None:
    with served.client() as client:
        answer = client.request(*request_)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"] and answer.json()["error"]


def test_raw_bytes_that_do_not_add_up_are_refused(served: Served) -> None:
    head = b'{"inputs":[{"name":"input","shape":[1,3,8,8],"datatype":"FP32","parameters":{"binary_data_size":768}}]}'
    cases = [
        (head + bytes(767), str(len(head)), "768, 767 came"),
        (head + bytes(769), str(len(head)), "1 bytes behind the JSON"),
        (head + bytes(768), str(len(head) + 9999), "the body has"),
        (head + bytes(768), "-1", "the body has"),
        (head + b"\xff" * 768, str(len(head)), "NaN"),
        (head + bytes(768), None, "not as the protocol has it"),
    ]
    with served.client() as client:
        for body, length, sentence in cases:
            headers = {} if length is None else {"Inference-Header-Content-Length": length}
            answer = client.post("/v2/models/small/infer", content=body, headers=headers)
            assert answer.status_code == 400 and sentence in answer.json()["error"]


def test_nan_in_a_result_is_refused_in_json_only() -> None:
    from qkernels.serve import protocol
    from qkernels.serve.model import Model, Tensor

    model = Model("v", "p", (), (Tensor("y", (1,)),), 1, lambda x: x)
    values = [np.array([[np.nan]], np.float32)]
    request = protocol.Request(None, [], [protocol.Wanted(0, is_binary=True)], None)
    body, headers = protocol.encode("m", "v", model, request, values)
    assert body[int(headers[protocol.JSON_LENGTH]) :] == values[0].tobytes()
    request = protocol.Request(None, [], [protocol.Wanted(0)], None)
    with pytest.raises(protocol.RequestError, match="ask for binary_data"):
        protocol.encode("m", "v", model, request, values)
