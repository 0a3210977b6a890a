"""gRPC: Triton's client, unchanged, and KServe's, gRPC's own health and reflection; and the messages themselves."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from serve_process import Served, serving
from served_nets import SIZE, save_program
from tritonclient import grpc as triton
from tritonclient.grpc import aio, service_pb2
from tritonclient.utils import InferenceServerException

from qkernels.program import Program

X = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
FOLDER = Path(__file__).parents[2] / "qkernels/serve/grpc"


def address(server: Served) -> str:
    for line in server.lines:
        if found := re.search(r"running gRPC on (\S+)", line["message"]):
            return found[1]
    raise AssertionError(server.lines)


@pytest.fixture(scope="module")
def both(program: Path) -> Iterator[Served]:
    with serving(program, "--size", SIZE, "--grpc-port", 0, "--max-body", 0.1) as server:
        yield server


@pytest.fixture(scope="module")
def client(both: Served) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(address(both)) as client:
        yield client


@pytest.fixture
def want(program: Path) -> np.ndarray:
    return Program.load(program)(X)


def given(values: np.ndarray = X, datatype: str = "FP32") -> list[triton.InferInput]:
    one = triton.InferInput("input", list(values.shape), datatype)
    one.set_data_from_numpy(values)
    return [one]


def wait_for(what: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not what():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_the_client_finds_a_server_that_is_live_and_ready(
    client: triton.InferenceServerClient,
) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("small") and not client.is_model_ready("other")
    assert "binary_tensor_data" in client.get_server_metadata().extensions
    found = client.get_model_metadata("small", as_json=True)
    assert found["inputs"] == [
        {"name": "input", "datatype": "FP32", "shape": ["-1", "3", "8", "8"]}
    ]
    config = client.get_model_config("small", as_json=True)["config"]
    assert config["max_batch_size"] == 32 and config["input"][0]["data_type"] == "TYPE_FP32"
    index = client.get_model_repository_index(as_json=True)["models"]
    assert [(row["name"], row["state"]) for row in index] == [("small", "READY")]


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_answers_are_the_bits_of_the_program(
    client: triton.InferenceServerClient, program: Path, rows: int
) -> None:
    x = np.random.default_rng(rows).standard_normal((rows, 3, 8, 8)).astype(np.float32)
    result = client.infer("small", given(x), request_id="a b", priority=1, timeout=5_000_000)
    assert np.array_equal(result.as_numpy("output"), Program.load(program)(x))
    assert result.get_response().id == "a b"


def test_tritons_asyncio_client_and_its_stream_get_the_same_bits(
    both: Served, client: triton.InferenceServerClient, want: np.ndarray
) -> None:
    async def ask() -> list[np.ndarray]:
        async with aio.InferenceServerClient(address(both)) as client:
            results = await asyncio.gather(*(client.infer("small", given()) for _ in range(16)))
            return [result.as_numpy("output") for result in results]

    assert all(np.array_equal(y, want) for y in asyncio.run(ask()))
    got: list[tuple[triton.InferResult, Exception | None]] = []
    client.start_stream(lambda result, error: got.append((result, error)))
    client.async_stream_infer("small", given())
    client.async_stream_infer("small", given(X[:, :2]))
    client.async_stream_infer("small", given())
    client.stop_stream()
    assert np.array_equal(got[0][0].as_numpy("output"), want) and got[1][1] is not None
    assert "is needed" in str(got[1][1]) and np.array_equal(got[2][0].as_numpy("output"), want)


def test_kserves_grpc_client_gets_the_same_bits(both: Served, want: np.ndarray) -> None:
    """In a process of its own: its messages have the names of Triton's."""
    script = """
import asyncio, json, sys, numpy as np
from stub_packages import part
client, types = part("kserve.inference_client"), part("kserve.protocol.infer_type")
x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
async def ask():
    one = types.InferInput("input", list(x.shape), "FP32")
    one.set_data_from_numpy(x, binary_data=sys.argv[2] == "raw")
    grpc = client.InferenceGRPCClient(sys.argv[1])
    assert await grpc.is_server_ready() and await grpc.is_model_ready("small")
    return await grpc.infer(types.InferRequest("small", [one]))
print(json.dumps(asyncio.run(ask()).outputs[0].as_numpy().tolist()))
"""
    pytest.importorskip("pandas")
    for kind in ("raw", "numbers"):
        command = [sys.executable, "-c", script, address(both), kind]
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        y = np.array(json.loads(done.stdout), np.float32)
        assert np.array_equal(y.reshape(want.shape), want)


def test_classes_pixels_and_halves_come_by_grpc_too(classifier: Path) -> None:
    program = Program.load(classifier)
    with serving(classifier, "--grpc-port", 0) as server:
        client = triton.InferenceServerClient(address(server))
        asked = [triton.InferRequestedOutput("output", class_count=2)]
        y = program(X)
        got = client.infer("classifier", given(), outputs=asked).as_numpy("output")
        assert got[0, 0].decode() == f"{y[0].max():f}:{y[0].argmax()}:{'vwxyz'[y[0].argmax()]}"
        half = X.astype(np.float16)
        got = client.infer("classifier", given(half, "FP16")).as_numpy("output")
        assert np.array_equal(got, program(half.astype(np.float32)))
        pixels = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 3), np.uint8)
        got = client.infer("classifier", given(pixels, "UINT8")).as_numpy("output")
        x = (pixels.astype(np.float32) - 127.5) / np.float32(63.75)
        assert np.array_equal(got, program(np.ascontiguousarray(x.transpose(0, 3, 1, 2))))


@pytest.mark.parametrize(
    ("name", "x", "options", "code", "sentence"),
    [
        ("other", X, {}, "NOT_FOUND", "no model 'other'"),
        ("small", X, {"model_version": "7"}, "NOT_FOUND", "no version '7'"),
        ("small", X[:, :2], {}, "INVALID_ARGUMENT", "is needed"),
        ("small", X * np.nan, {}, "INVALID_ARGUMENT", "NaN"),
        ("small", X, {"sequence_id": 3, "sequence_start": True}, "INVALID_ARGUMENT", "keeps no state"),
        ("small", np.zeros((300, 3, 8, 8), np.float32), {}, "RESOURCE_EXHAUSTED", "larger than max"),
    ],
)  # fmt: skip
def test_a_refusal_has_its_code_and_sentence(
    client: triton.InferenceServerClient,
    name: str,
    x: np.ndarray,
    options: dict[str, object],
    code: str,
    sentence: str,
) -> None:
    with pytest.raises(InferenceServerException, match=sentence) as refused:
        client.infer(name, given(x), **options)
    assert refused.value.status() == f"StatusCode.{code}"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda m: m.raw_input_contents.append(b""), "1 inputs have 2 raw contents"),
        (lambda m: m.raw_input_contents.__setitem__(0, b"abc"), "needs 768 bytes, 3 came"),
        (lambda m: m.inputs[0].contents.fp32_contents.append(1), "both contents and raw"),
        (lambda m: m.inputs.add(name="x"), "2 inputs have 1 raw contents"),
        (lambda m: m.ClearField("inputs") or m.ClearField("raw_input_contents"), "'input' is missing"),
        (lambda m: m.inputs[0].shape.__setitem__(0, -1), "N from 1 to"),
        (lambda m: setattr(m.parameters["timeout"], "string_param", "x"), "no whole number"),
        (lambda m: setattr(m.inputs[0].parameters["shared_memory_region"], "string_param", "r"), "memory 'r'"),
        (lambda m: [m.outputs.add(name="output") for _ in range(2)], "twice"),
        (lambda m: m.outputs.add(name="z"), "no output 'z'"),
    ],
)  # fmt: skip
def test_a_wrong_message_is_named(
    both: Served, change: Callable[[object], object], sentence: str
) -> None:
    message = service_pb2.ModelInferRequest(model_name="small", raw_input_contents=[bytes(768)])
    message.inputs.add(name="input", datatype="FP32", shape=[1, 3, 8, 8])
    with grpc.insecure_channel(address(both)) as channel:
        ask = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            service_pb2.ModelInferRequest.SerializeToString,
            service_pb2.ModelInferResponse.FromString,
        )
        assert len(ask(message).raw_output_contents[0]) == 20
        change(message)
        with pytest.raises(grpc.RpcError) as refused:
            ask(message)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert sentence in refused.value.details()


def test_the_health_and_reflection_services_are_gRPCs_own(both: Served) -> None:
    with grpc.insecure_channel(address(both)) as channel:
        health = health_pb2_grpc.HealthStub(channel)

        def status(service: str) -> int:
            return health.Check(health_pb2.HealthCheckRequest(service=service), timeout=20).status

        for service in ("", "inference.GRPCInferenceService", "small"):
            wait_for(
                lambda service=service: status(service) == health_pb2.HealthCheckResponse.SERVING
            )
        with pytest.raises(grpc.RpcError):
            status("other")
        services = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= set(services)


def test_requests_of_both_protocols_run_in_the_same_batches_and_are_counted_together(
    program: Path, want: np.ndarray
) -> None:
    words = ("--size", SIZE, "--grpc-port", 0, "--max-delay", 3000, "--max-batch", 4)
    with serving(program, *words) as server, server.client() as http:
        client = triton.InferenceServerClient(address(server))
        got: list[np.ndarray] = []
        asking = threading.Thread(
            target=lambda: got.append(client.infer("small", given()).as_numpy("output"))
        )
        asking.start()
        wait_for(lambda: 'queue_rows{model="small"} 2.0' in http.get("/metrics").text)
        one = {
            "name": "input",
            "shape": [2, 3, 8, 8],
            "datatype": "FP32",
            "data": X.ravel().tolist(),
        }
        http.post("/v2/models/small/infer", json={"inputs": [one]}).raise_for_status()
        asking.join()
        assert np.array_equal(got[0], want)
        text = http.get("/metrics").text
        assert 'qkernels_batch_rows_count{model="small"} 1.0' in text
        assert 'qkernels_requests_total{model="small",status="200"} 2.0' in text
        stats = client.get_inference_statistics("small").model_stats[0]
        assert stats.inference_count == 4 and stats.execution_count == 1
        assert stats.inference_stats.success.count == 2


def test_a_full_queue_and_a_deadline_are_told_apart(program: Path) -> None:
    words = (
        "--size",
        SIZE,
        "--grpc-port",
        0,
        "--max-delay",
        60_000,
        "--max-batch",
        2,
        "--queue",
        2,
    )
    with serving(program, *words) as server, server.client() as http:
        client = triton.InferenceServerClient(address(server))
        with pytest.raises(InferenceServerException) as late:
            client.infer("small", given(X[:1]), timeout=100_000)
        assert late.value.status() == "StatusCode.DEADLINE_EXCEEDED"
        with pytest.raises(InferenceServerException) as late:
            client.infer("small", given(X[:1]), client_timeout=0.2)
        assert late.value.status() == "StatusCode.DEADLINE_EXCEEDED"
        wait_for(lambda: 'queue_rows{model="small"} 0.0' in http.get("/metrics").text)
        waiting = client.async_infer("small", given(X[:1]), lambda result, error: None)
        wait_for(lambda: 'queue_rows{model="small"} 1.0' in http.get("/metrics").text)
        with pytest.raises(InferenceServerException) as full:
            client.infer("small", given())
        assert full.value.status() == "StatusCode.UNAVAILABLE"
        waiting.cancel()


def test_the_token_is_asked_for_and_health_is_open(program: Path, want: np.ndarray) -> None:
    with serving(program, "--size", SIZE, "--grpc-port", 0, QKERNELS_TOKEN="secret") as server:
        client = triton.InferenceServerClient(address(server))
        assert client.is_server_live()
        for headers in ({}, {"authorization": "Bearer wrong"}):
            with pytest.raises(InferenceServerException) as refused:
                client.infer("small", given(), headers=headers)
            assert refused.value.status() == "StatusCode.UNAUTHENTICATED"
        got = client.infer("small", given(), headers={"authorization": "bearer secret"})
        assert np.array_equal(got.as_numpy("output"), want)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_grpc_is_behind_tls_where_http_is(program: Path, tmp_path: Path, want: np.ndarray) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    written = ["-keyout", key, "-out", certificate]
    subprocess.run([*command.split(), *names, *written], check=True, capture_output=True)
    words = ("--size", SIZE, "--grpc-port", 0, "--certificate", certificate, "--key", key)
    with serving(program, *words) as server:
        client = triton.InferenceServerClient(
            address(server), ssl=True, root_certificates=str(certificate)
        )
        assert np.array_equal(client.infer("small", given()).as_numpy("output"), want)


def test_sigterm_answers_what_has_come_by_grpc(program: Path) -> None:
    words = ("--size", SIZE, "--grpc-port", 0, "--max-delay", 700)
    with serving(program, *words) as server, server.client() as http:
        client = triton.InferenceServerClient(address(server))
        got: list[np.ndarray] = []
        asking = threading.Thread(
            target=lambda: got.append(client.infer("small", given()).as_numpy("output"))
        )
        asking.start()
        wait_for(lambda: 'queue_rows{model="small"} 2.0' in http.get("/metrics").text)
        server.process.send_signal(signal.SIGTERM)
        asking.join()
        assert len(got) == 1
        assert server.process.wait(20) == 0


def test_a_killed_process_listens_at_the_same_grpc_port_again(program: Path) -> None:
    with serving(program, "--size", SIZE, "--grpc-port", 0) as server:
        before = address(server)
        os.kill(server.child, signal.SIGKILL)

        def is_back() -> bool:
            try:
                with triton.InferenceServerClient(before) as client:
                    return client.is_model_ready("small")
            except InferenceServerException:
                return False

        wait_for(is_back)


def test_ids_and_traces_of_grpc_are_in_the_log(program: Path) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    words = ("--size", SIZE, "--grpc-port", 0, "--log-level", "debug")
    with serving(program, *words) as server:
        client = triton.InferenceServerClient(address(server))
        client.infer("small", given(), request_id="mine", headers={"traceparent": trace})
        with pytest.raises(InferenceServerException):
            client.infer(
                "small", given(X[:, :2]), headers={"x-request-id": "abc", "traceparent": trace}
            )
        wait_for(lambda: sum("trace_id" in line for line in server.lines) == 2)
    lines = [line for line in server.lines if "trace_id" in line]
    assert [line["id"] for line in lines] == ["mine", "abc"]
    assert {line["trace_id"] for line in lines} == {trace.split("-")[1]}


def test_models_are_loaded_and_unloaded_by_grpc(tmp_path: Path) -> None:
    save_program(tmp_path / "x.qkp")
    (tmp_path / "models/m/3").mkdir(parents=True)
    (tmp_path / "x.qkp").rename(tmp_path / "models/m/3/model.qkp")
    (tmp_path / "models/m/settings.json").write_text('{"size": ["1,3,8,8"]}')
    words = ("--grpc-port", 0, "--control", "explicit")
    with serving(tmp_path / "models", *words, ready="running gRPC") as server:
        client = triton.InferenceServerClient(address(server))
        wait_for(lambda: server_is_ready(client))
        assert not client.is_model_ready("m")
        client.load_model("m")
        assert client.infer("m", given()).get_response().model_version == "3"
        client.unload_model("m")
        assert not client.is_model_ready("m")
        with pytest.raises(InferenceServerException, match="no model 'x'"):
            client.load_model("x")
        with pytest.raises(InferenceServerException, match="'config' is not taken"):
            client.load_model("m", config="{}")


def server_is_ready(client: triton.InferenceServerClient) -> bool:
    try:
        return client.is_server_ready()
    except InferenceServerException:
        return False


def test_a_port_that_is_taken_is_one_sentence(program: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(AssertionError) as ended,
            serving(program, "--size", SIZE, "--grpc-port", port),
        ):
            pass
    assert f"port {port}: " in ended.value.args[0][-1]["message"]


def test_without_the_flag_nothing_of_grpc_is_loaded(served: Served) -> None:
    assert "grpc" not in Path(f"/proc/{served.child}/maps").read_text()


def test_the_messages_are_made_of_the_proto_and_are_tritons() -> None:
    """In a process of its own: the names of the messages are Triton's."""
    script = f"""
import grpc_tools.protoc, pathlib, tempfile
from qkernels.serve.grpc import inference_pb2
out = tempfile.mkdtemp()
assert not grpc_tools.protoc.main(["", "-I{FOLDER}", f"--python_out={{out}}", "inference.proto"])
def serialized(path):
    (line,) = [line for line in path.read_text().splitlines() if "AddSerializedFile(" in line]
    return line
assert serialized(pathlib.Path(out, "inference_pb2.py")) == serialized(pathlib.Path(inference_pb2.__file__))
print(inference_pb2.DESCRIPTOR.serialized_pb.hex())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    from google.protobuf import descriptor_pb2, descriptor_pool

    pool = descriptor_pool.DescriptorPool()
    made = descriptor_pb2.FileDescriptorProto.FromString(bytes.fromhex(done.stdout))
    pool.Add(made) if hasattr(pool, "Add") else pool.AddSerializedFile(made.SerializeToString())
    theirs = descriptor_pool.Default()

    def check(name: str) -> int:
        ours, known = pool.FindMessageTypeByName(name), theirs.FindMessageTypeByName(name)
        for field in ours.fields:
            other = known.fields_by_name[field.name]
            assert (field.number, field.type, field.is_repeated) == (
                other.number,
                other.type,
                other.is_repeated,
            )
        return len(ours.fields) + sum(check(inner.full_name) for inner in ours.nested_types)

    assert sum(check(f"inference.{message.name}") for message in made.message_type) > 100
    for value, number in (("TYPE_FP32", 11), ("TYPE_INT64", 9)):
        assert pool.FindEnumTypeByName("inference.DataType").values_by_name[value].number == number
    methods = {method.name for method in made.service[0].method}
    assert methods <= set(
        theirs.FindServiceByName("inference.GRPCInferenceService").methods_by_name
    )
