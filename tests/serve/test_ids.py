"""Token ids and masks as inputs: what is taken over HTTP and gRPC, and that one wrong id fails one request."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serve_process import Served, serving
from served_nets import save_words
from tritonclient import grpc as triton_grpc
from tritonclient import http as triton
from tritonclient.http import aio as triton_aio
from tritonclient.utils import InferenceServerException

from qkernels.program import Program
from qkernels.serve.batching import Batcher
from qkernels.serve.metrics import Metrics
from qkernels.serve.model import map_program, open_model
from qkernels.serve.settings import Settings
from qkernels.serve.workers import Workers

SIZES = ("--size", "1,16", "--size", "1,16")
INFER = "/v2/models/words/infer"


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_words(tmp_path_factory.mktemp("words") / "words.qkp")


@pytest.fixture(scope="module")
def server(words: Path) -> Iterator[Served]:
    with serving(words, *SIZES, "--max-batch", 8, "--grpc-port", 0) as server:
        yield server


def asked(rows: int, tokens: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.integers(0, 50, (rows, tokens)), random.integers(0, 2, (rows, tokens))


def tensors(client: Any, arrays: tuple[np.ndarray, ...], **how: Any) -> list[Any]:
    made = []
    for i, array in enumerate(arrays):
        datatype = "INT32" if array.dtype == np.int32 else "INT64"
        made.append(client.InferInput(f"input_{i}", list(array.shape), datatype))
        made[-1].set_data_from_numpy(array, **how)
    return made


def check(result: Any, words: Path, arrays: tuple[np.ndarray, ...]) -> None:
    want = Program.load(words)(*(array.astype(np.int64) for array in arrays))
    for i, y in enumerate(want):
        assert np.array_equal(result.as_numpy(f"output_{i}"), y)


@pytest.mark.parametrize("dtype", [np.int64, np.int32])
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("tokens", [1, 5, 16])
def test_ids_of_any_number_have_the_bits_of_the_program(
    server: Served, words: Path, tokens: int, binary: bool, dtype: Any
) -> None:
    arrays = tuple(array.astype(dtype) for array in asked(3, tokens))
    client = triton.InferenceServerClient(server.address)
    check(client.infer("words", tensors(triton, arrays, binary_data=binary)), words, arrays)


@pytest.mark.parametrize("dtype", [np.int64, np.int32])
def test_ids_come_by_grpc_too(server: Served, words: Path, dtype: Any) -> None:
    arrays = tuple(array.astype(dtype) for array in asked(3, 5))
    client = triton_grpc.InferenceServerClient(grpc_address(server))
    check(client.infer("words", tensors(triton_grpc, arrays)), words, arrays)
    config = client.get_model_config("words").config
    assert [(t.data_type, list(t.dims)) for t in config.input] == [(9, [-1])] * 2


def grpc_address(server: Served) -> str:
    lines = "\n".join(line["message"] for line in server.lines)
    found = re.search(r"running gRPC on (\S+)", lines)
    assert found is not None
    return found[1]


def test_metadata_say_what_is_free(server: Served) -> None:
    found = triton.InferenceServerClient(server.address).get_model_metadata("words")
    assert found["inputs"] == [
        {"name": f"input_{i}", "datatype": "INT64", "shape": [-1, -1]} for i in range(2)
    ]
    assert [(t["datatype"], t["shape"]) for t in found["outputs"]] == [
        ("FP32", [-1, -1, 4]),
        ("FP32", [-1, -1, 1]),
    ]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"data": [[0, 1, 50]]}, r"'input_0' holds the id 50 at \[0, 2\]; ids from 0 to 49 are taken"),
        ({"data": [0, -1, 2]}, r"'input_0' holds the id -1 at \[0, 1\]"),
        ({"data": [0, 2**63, 2]}, "whole numbers from -9223372036854775808 to"),
        ({"data": [0, 10**30, 2]}, "are not numbers"),
        ({"data": [0, 1.5, 2]}, "are not whole numbers"),
        ({"data": [0, True, 2.0]}, "are not whole numbers"),
        ({"datatype": "INT32", "data": [0, 2**31, 2]}, "whole numbers from -2147483648 to"),
        ({"datatype": "FP32"}, "has datatype 'FP32'; INT64 is needed, or INT32"),
        ({"shape": [1, 17], "data": [0] * 17}, r"\[N, T\] with N from 1 to 8 and T from 1 to 16"),
        ({"shape": [1, 0], "data": []}, r"T from 1 to 16"),
        ({"shape": [9, 1], "data": [0] * 9}, "N from 1 to 8"),
        ({"shape": [3]}, "is needed"),
        ({"shape": [1, 2], "data": [0, 1]}, r"differ in their number of ids: \[2, 3\]"),
    ],
)  # fmt: skip
def test_what_is_no_id_is_told_in_a_sentence(
    server: Served, change: dict[str, Any], sentence: str
) -> None:
    one = {"name": "input_0", "shape": [1, 3], "datatype": "INT64", "data": [0, 1, 2]}
    mask = one | {"name": "input_1", "data": [1, 1, 0]}
    with server.client() as client:
        client.post(INFER, json={"inputs": [one, mask]}).raise_for_status()
        answer = client.post(INFER, json={"inputs": [one | change, mask]})
    assert answer.status_code == 400 and re.search(sentence, answer.json()["error"])


@settings(max_examples=20, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6)), min_size=1, max_size=12),
    seed=st.integers(0, 99),
)
def test_requests_of_several_lengths_run_with_their_likes_and_get_their_own_answers(
    words: Path, shapes: list[tuple[int, int]], seed: int
) -> None:
    program = Program.load(words)
    model = map_program(words, [(1, 16), (1, 16)], 1).warm_up(4)

    async def run() -> None:
        workers = Workers(1)
        queue = Batcher(model, Settings(words, "w", max_batch=4), workers, Metrics().of("w"))
        requests = [asked(*shape, seed=seed + i) for i, shape in enumerate(shapes)]
        answers = await asyncio.gather(*(queue.infer(x) for x in requests))
        workers.close()
        for found in (answers, model.run_together(requests)):
            for x, answer in zip(requests, found, strict=True):
                for y, want in zip(answer, program(*x), strict=True):
                    assert np.array_equal(y, want)

    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_length_that_nobody_has_said_or_a_size_too_few_is_told(words: Path) -> None:
    with pytest.raises(ValueError, match="any number of token ids: give --size, the longest"):
        open_model(words, [], 1)
    with pytest.raises(ValueError, match=r"takes 2 input\(s\), not 1"):
        open_model(words, [(1, 16)], 1)


def test_a_fixed_number_of_ids_follows_from_the_file(tmp_path: Path) -> None:
    model = open_model(save_words(tmp_path / "words.qkp", tokens=6), [], 1).warm_up(2)
    assert [(t.dims, t.id_count) for t in model.inputs] == [([6], 50), ([6], 2)]
    assert [t.dims for t in model.outputs] == [[6, 4], [6, 1]]
    with pytest.raises(ValueError, match=r"is int64 \[1, 5\]; int64 \[N, 6\] with N from 1 to 2"):
        model.check(asked(1, 5))
    with pytest.raises(ValueError, match="holds the id 50"):
        model.check((np.full((1, 6), 50), np.zeros((1, 6), np.int64)))


def test_a_wrong_id_fails_no_other_request_of_its_moment(server: Served, words: Path) -> None:
    async def ask() -> list[Any]:
        async with triton_aio.InferenceServerClient(server.address) as client:
            good, bad = asked(1, 5), (np.full((1, 5), 50), np.zeros((1, 5), np.int64))
            asking = [client.infer("words", tensors(triton, x)) for x in [good, bad] * 8]
            return await asyncio.gather(*asking, return_exceptions=True)

    answers = asyncio.run(ask())
    for answer in answers[::2]:
        check(answer, words, asked(1, 5))
    assert all(isinstance(error, InferenceServerException) for error in answers[1::2])
