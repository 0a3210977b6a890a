"""The folder for Triton: its config by Triton's own protobuf, its model.py on what the Python backend gives it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import triton_python_backend_utils as pb_utils
from google.protobuf import json_format, text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from served_nets import save_words

from qkernels.cli import main
from qkernels.program import Program
from qkernels.serve.triton import write_triton_model

SIZE = (1, 3, 8, 8)
HEADS = ((1, 3, 8, 8), (1, 2, 8, 8))
TYPE_FP32, TYPE_INT64 = 11, 9  # of inference.DataType


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_config(folder: Path) -> Any:
    """Parsed as `inference.ModelConfig`, the message that Triton reads."""
    (package,) = importlib.util.find_spec("tritonclient").submodule_search_locations
    messages = load(Path(package) / "grpc/model_config_pb2.py")  # the package itself wants grpc
    return text_format.Parse((folder / "config.pbtxt").read_text(), messages.ModelConfig())


def start(folder: Path, instances: int = 1, cores: int = 1) -> Any:
    """An instance of the model, as Triton starts it on a machine of so many cores."""
    config = read_config(folder)
    config.instance_group[0].count = instances
    said = json_format.MessageToJson(config, preserving_proto_field_name=True)
    module = load(folder / "1/model.py")
    module.usable_cores = lambda: cores
    model = module.TritonPythonModel()
    model.initialize({"model_config": said, "model_repository": str(folder), "model_version": "1"})
    return model


@pytest.fixture(scope="module")
def small(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "small"
    write_triton_model(program, folder, [SIZE], max_batch=8)
    return folder


@pytest.fixture(scope="module")
def heads(two_headed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "two-heads"
    write_triton_model(two_headed, folder, HEADS)
    return folder


def ends(tensors: Any) -> list[tuple[str, list[int]]]:
    assert all(tensor.data_type == TYPE_FP32 for tensor in tensors)
    return [(tensor.name, list(tensor.dims)) for tensor in tensors]


def test_the_config_says_what_the_model_takes_and_gives(small: Path, heads: Path) -> None:
    config = read_config(small)
    assert (config.name, config.backend, config.max_batch_size) == ("small", "python", 8)
    assert ends(config.input) == [("input", [3, 8, 8])]
    assert ends(config.output) == [("output", [5])]
    config = read_config(heads)
    assert ends(config.input) == [("input_0", [3, 8, 8]), ("input_1", [2, 8, 8])]
    assert ends(config.output) == [("output_0", [5]), ("output_1", [8, 6, 6])]


def test_the_config_batches_bounds_its_queue_and_warms_up(heads: Path) -> None:
    config = read_config(heads)
    assert config.HasField("dynamic_batching")
    policy = config.dynamic_batching.default_queue_policy
    assert policy.max_queue_size >= config.max_batch_size
    assert policy.default_timeout_microseconds > 0
    assert [warm.batch_size for warm in config.model_warmup] == [config.max_batch_size, 1]
    for warm in config.model_warmup:
        assert {name: list(zeros.dims) for name, zeros in warm.inputs.items()} == {
            tensor.name: list(tensor.dims) for tensor in config.input
        }
        assert all(zeros.zero_data for zeros in warm.inputs.values())
    (group,) = config.instance_group
    assert group.count == 1 and group.kind == group.Kind.Value("KIND_CPU")


@settings(deadline=None, max_examples=20)
@given(rows=st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_requests_of_any_rows_are_answered_in_order_with_the_bits_of_the_program(
    heads: Path, two_headed: Path, rows: list[int]
) -> None:
    model, program = start(heads), Program.load(two_headed)
    rng = np.random.default_rng(0)
    asked = [[rng.standard_normal((n, *s[1:]), np.float32) for s in HEADS] for n in rows]
    requests = [
        pb_utils.InferenceRequest(
            [pb_utils.Tensor("input_1", y), pb_utils.Tensor("input_0", x)]  # in no order
        )
        for x, y in asked
    ]
    responses = model.execute(requests)
    assert len(responses) == len(requests)
    for inputs, response in zip(asked, responses, strict=True):
        given_back = response.output_tensors()
        assert [tensor.name() for tensor in given_back] == ["output_0", "output_1"]
        for tensor, want in zip(given_back, program(*inputs), strict=True):
            assert np.array_equal(tensor.as_numpy(), want)


def test_one_output_is_no_list(small: Path, program: Path) -> None:
    x = np.random.default_rng(1).standard_normal((3, 3, 8, 8), np.float32)
    (response,) = start(small).execute([pb_utils.InferenceRequest([pb_utils.Tensor("input", x)])])
    (tensor,) = response.output_tensors()
    assert np.array_equal(tensor.as_numpy(), Program.load(program)(x))


def test_a_wrong_id_fails_its_own_request_alone(tmp_path: Path) -> None:
    words, folder = save_words(tmp_path / "words.qkp"), tmp_path / "models/words"
    write_triton_model(words, folder, [(1, 16), (1, 16)])
    config = read_config(folder)
    assert [(t.data_type, list(t.dims)) for t in config.input] == [(TYPE_INT64, [-1])] * 2
    assert [list(zeros.dims) for zeros in config.model_warmup[0].inputs.values()] == [[16]] * 2

    def request(id: int) -> pb_utils.InferenceRequest:
        ids = np.full((1, 3), id)
        return pb_utils.InferenceRequest(
            [pb_utils.Tensor("input_0", ids), pb_utils.Tensor("input_1", 0 * ids)]
        )

    good, bad = start(folder).execute([request(1), request(50)])
    want = Program.load(words)(np.full((1, 3), 1), np.zeros((1, 3), np.int64))
    assert good.error() is None and np.array_equal(good.output_tensors()[0].as_numpy(), want[0])
    assert "the id at [0, 0] is 50" in bad.error().message() and not bad.output_tensors()


@pytest.mark.parametrize(("cores", "instances", "threads"), [(8, 1, 8), (8, 3, 2), (2, 4, 1)])
def test_instances_share_the_cores_out(
    small: Path, cores: int, instances: int, threads: int
) -> None:
    assert start(small, instances, cores)._program.threads == threads


def test_an_instance_holds_no_torch_and_maps_the_file(small: Path) -> None:
    code = f"""
import importlib.util, json, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
spec = importlib.util.spec_from_file_location("model", {str(small / "1/model.py")!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
config = {{"input": [{{"name": "input"}}], "output": [{{"name": "output"}}], "instance_group": [{{"count": 1}}]}}
model = module.TritonPythonModel()
model.initialize(
    {{"model_config": json.dumps(config), "model_repository": {str(small)!r}, "model_version": "1"}}
)
assert "torch" not in sys.modules and "starlette" not in sys.modules
assert "1/model.qkp" in open("/proc/self/maps").read()
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ, timeout=60)


def test_what_cannot_be_written_is_named_and_leaves_nothing(
    program: Path, small: Path, tmp_path: Path
) -> None:
    cases: list[tuple[type[Exception], str, Any, Any, Any]] = [
        (FileExistsError, "is there already", program, small, [SIZE]),
        (ValueError, "'a b'", program, tmp_path / "a b", [SIZE]),
        (ValueError, "give --size", program, tmp_path / "model", []),
        (ValueError, "model.py", small / "1/model.py", tmp_path / "model", [SIZE]),
        (FileNotFoundError, "none.qkp", tmp_path / "none.qkp", tmp_path / "model", [SIZE]),
    ]
    for error, sentence, source, folder, sizes in cases:
        with pytest.raises(error, match=sentence):
            write_triton_model(source, folder, sizes)
    assert not list(tmp_path.iterdir())


def test_the_command_writes_the_folder(
    program: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "models/small"
    words = ["export", str(program), str(folder), "--to", "triton", "--size", "1,3,8,8"]
    for code, said in [(0, f"wrote {folder}: model 'small'"), (2, "is there already")]:
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == code
        assert said in "".join(capsys.readouterr())
    files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert files == {f"models/small/{f}" for f in ("config.pbtxt", "1/model.py", "1/model.qkp")}
