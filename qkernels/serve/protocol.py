"""Requests and answers of the Open Inference Protocol v2 over HTTP, with binary tensors and classification.

https://github.com/kserve/open-inference-protocol, and Triton Inference Server's extensions of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from qkernels.serve import tensors
from qkernels.serve.errors import RequestError, bad
from qkernels.serve.model import Arrays, Model, Tensor
from qkernels.serve.tensors import Given

JSON_LENGTH = "inference-header-content-length"  # of the JSON before the raw tensors
EXTENSIONS = [
    "binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics",
]  # fmt: skip

Count = Annotated[int, msgspec.Meta(ge=0)]


class _Strict(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What is not known is refused, not ignored. null is as good as absent."""


class _Parameters(msgspec.Struct, frozen=True):
    """What is not known is a hint, a trace or another server's, and changes nothing in the answer."""


class _RequestParameters(_Parameters, frozen=True):
    timeout: Count | None = None  # microseconds; 0: none
    binary_data_output: bool | None = None
    sequence_start: bool | None = None
    sequence_end: bool | None = None


class _InputParameters(_Parameters, frozen=True):
    binary_data_size: Count | None = None
    shared_memory_region: Any = None


class _OutputParameters(_Parameters, frozen=True):
    binary_data: bool | None = None
    classification: Count | None = None
    shared_memory_region: Any = None


class _Input(_Strict, frozen=True):
    name: str
    shape: list[int]
    datatype: str
    data: list[Any] | None = None
    parameters: _InputParameters | None = None


class _Output(_Strict, frozen=True):
    name: str
    parameters: _OutputParameters | None = None


class _Message(_Strict, frozen=True):
    inputs: list[_Input]
    id: str | None = None
    model_name: str | None = None
    model_version: str | None = None
    outputs: list[_Output] | None = None
    parameters: _RequestParameters | None = None


class IndexRequest(_Strict, frozen=True):
    """A request for the repository's index: only the models that are ready, or all."""

    ready: bool | None = None


class LoadRequest(_Strict, frozen=True):
    """A request to load a model."""

    parameters: dict[str, Any] | None = None


class UnloadRequest(_Strict, frozen=True):
    """A request to let a model go."""

    parameters: dict[str, Any] | None = None  # unload_dependents: there are none


_decoder = msgspec.json.Decoder(_Message)


@dataclass(frozen=True)
class Wanted:
    """One output of an answer: which of the model's, as raw bytes or in JSON, and of how many classes, if of those."""

    index: int
    is_binary: bool = False
    classes: int = 0


@dataclass(frozen=True)
class Request:
    """``inputs``: in the model's order, of one batch. ``timeout``: seconds."""

    id: str | None
    inputs: Arrays
    outputs: list[Wanted]
    timeout: float | None
    model_name: str | None = None
    model_version: str | None = None


def decode(body: bytes, json_length: str | None, model: Model) -> Request:
    """Raises RequestError(400) that names what is wrong."""
    head, raw = _split(body, json_length)
    if json_length is not None and not head:
        return _raw(raw, model)
    try:
        message = _decoder.decode(head)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise bad(f"the request is not as the protocol has it: {error}") from error
    parameters = message.parameters or _RequestParameters()
    refuse_sequence(parameters.sequence_start, parameters.sequence_end)
    inputs = tensors.arrays(_given(message.inputs, raw), model)
    outputs = _outputs(message.outputs or [], bool(parameters.binary_data_output), model)
    timeout = parameters.timeout / 1e6 if parameters.timeout else None
    name, version = message.model_name, message.model_version
    return Request(message.id, inputs, outputs, timeout, name or None, version or None)


T = TypeVar("T")


def decode_as(kind: type[T], body: bytes) -> T:
    """Raises RequestError(400)."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise bad(f"the request is not as the protocol has it: {error}") from error


def refuse_sequence(start: bool | None, end: bool | None) -> None:
    """Requests that belong together would need a state; each is answered alone. Raises RequestError(400)."""
    if bool(start) != bool(end):
        raise bad("the model keeps no state: a sequence of several requests is not taken")


def encode(
    name: str, version: str, model: Model, request: Request, results: Arrays
) -> tuple[bytes, dict[str, str]]:
    """The body of an answer, and its headers."""
    described, raw = [], []
    for wanted in request.outputs:
        output, binary = _encoded(wanted, model, results[wanted.index])
        described.append(output)
        raw += binary
    answer: dict[str, Any] = {"model_name": name, "model_version": version, "outputs": described}
    if request.id is not None:
        answer["id"] = request.id
    head = msgspec.json.encode(answer)
    if not raw:
        return head, {"content-type": "application/json"}
    headers = {"content-type": "application/octet-stream", JSON_LENGTH: str(len(head))}
    return b"".join([head, *raw]), headers


def metadata(name: str, versions: list[str], model: Model) -> dict[str, Any]:
    def described(ends: tuple[Tensor, ...]) -> list[dict[str, Any]]:
        return [{"name": t.name, "datatype": t.datatype, "shape": [-1, *t.dims]} for t in ends]

    return {
        "name": name,
        "versions": versions,
        "platform": model.platform,
        "inputs": described(model.inputs),
        "outputs": described(model.outputs),
    }


def classified(values: NDArray[np.float32], classes: int, model: Model) -> NDArray[np.object_]:
    """The ``classes`` largest of each row, as "value:index" or "value:index:label" [N, classes]."""
    flat = values.reshape(len(values), -1)
    best = np.argsort(-flat, axis=1, kind="stable")[:, :classes]
    labels = model.image_input.classes if model.image_input is not None else None
    rows = [
        [f"{row[i]:f}:{i}" + (f":{labels[i]}" if labels else "") for i in order]
        for row, order in zip(flat, best, strict=True)
    ]
    return np.array(rows, object)


def as_bytes(texts: NDArray[np.object_]) -> bytes:
    """BYTES elements as the protocol has them: each with its length, in four bytes, before it."""
    every = [text.encode() for text in texts.ravel()]
    return b"".join(len(text).to_bytes(4, "little") + text for text in every)


def _split(body: bytes, json_length: str | None) -> tuple[bytes, bytes]:
    if json_length is None:
        return body, b""
    digits = json_length.isascii() and json_length.isdigit() and len(json_length) < 20
    if not digits or int(json_length) > len(body):
        raise bad(f"{JSON_LENGTH} is {json_length!r}; the body has {len(body)} bytes")
    return body[: int(json_length)], body[int(json_length) :]


def _raw(raw: bytes, model: Model) -> Request:
    """A request without JSON: the bytes are those of the only input, as many rows as there are."""
    if len(model.inputs) != 1:
        raise bad(f"raw bytes without JSON are for a model of one input, not {len(model.inputs)}")
    (tensor,) = model.inputs
    row = tensors.raw_size(tensor.datatype, tensor.size)
    if len(raw) % row:
        raise bad(f"{len(raw)} bytes came; a row of input {tensor.name!r} has {row}")
    given = Given(tensor.name, tensor.datatype, [len(raw) // row, *tensor.size], raw)
    outputs = [Wanted(i, is_binary=True) for i in range(len(model.outputs))]
    return Request(None, tensors.arrays([given], model), outputs, None)


def _given(inputs: list[_Input], raw: bytes) -> list[Given]:
    given, at, view = list[Given](), 0, memoryview(raw)
    for one in inputs:
        parameters = one.parameters or _InputParameters()
        refuse_shared_memory(one.name, parameters.shared_memory_region)
        said = parameters.binary_data_size
        if said is None and one.data is None:
            raise bad(f"input {one.name!r} has neither data nor binary_data_size")
        if said is not None:
            if one.data is not None:
                raise bad(f"input {one.name!r} has both data and binary_data_size")
            needed = tensors.raw_size(one.datatype, one.shape)
            part: Any = view[at : at + said]
            if needed > 0 and (said != needed or len(part) != said):
                raise bad(
                    f"input {one.name!r}: its shape needs {needed} bytes, binary_data_size is {said}, {len(part)} came"
                )
            at += said
        else:
            part = one.data
        given.append(Given(one.name, one.datatype, one.shape, part))
    if at < len(raw):
        raise bad(f"{len(raw) - at} bytes behind the JSON belong to no input")
    return given


def refuse_parameters(given: Iterable[str]) -> None:
    """Refuse a configuration or files of a request to load: they would be another model. Raises RequestError(400)."""
    if names := sorted(given):
        raise bad(f"a model is loaded as the repository has it: {names[0]!r} is not taken")


def refuse_shared_memory(name: str, region: Any) -> None:
    if region is not None:
        raise bad(f"{name!r} is in the shared memory {region!r}, which is not taken")


def _outputs(asked: list[_Output], is_binary: bool, model: Model) -> list[Wanted]:
    if not asked:
        return [Wanted(i, is_binary) for i in range(len(model.outputs))]
    wanted = []
    for one in asked:
        parameters = one.parameters or _OutputParameters()
        refuse_shared_memory(one.name, parameters.shared_memory_region)
        own = parameters.binary_data
        index = output_index(one.name, model)
        classes = parameters.classification or 0
        wanted.append(Wanted(index, is_binary if own is None else own, classes))
    if len({one.index for one in wanted}) < len(wanted):
        raise bad("an output is asked for twice")
    return wanted


def output_index(name: str, model: Model) -> int:
    names = [tensor.name for tensor in model.outputs]
    if name not in names:
        raise bad(f"there is no output {name!r}; the model gives {', '.join(names)}")
    return names.index(name)


def _encoded(
    wanted: Wanted, model: Model, values: NDArray[np.float32]
) -> tuple[dict[str, Any], list[bytes]]:
    """One output as JSON, and as raw bytes behind it, if it is those."""
    name = model.outputs[wanted.index].name
    if wanted.classes:
        texts = classified(values, wanted.classes, model)
        output: dict[str, Any] = {"name": name, "datatype": "BYTES", "shape": texts.shape}
        if not wanted.is_binary:
            return output | {"data": texts.ravel().tolist()}, []
        raw = as_bytes(texts)
    else:
        output = {"name": name, "datatype": "FP32", "shape": values.shape}
        if not wanted.is_binary:
            if not np.isfinite(values).all():
                raise RequestError(
                    400, f"output {name!r} has values that JSON has not: ask for binary_data"
                )
            return output | {"data": values.ravel().tolist()}, []
        raw = np.ascontiguousarray(values).tobytes()
    return output | {"parameters": {"binary_data_size": len(raw)}}, [raw]
