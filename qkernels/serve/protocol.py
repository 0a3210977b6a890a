"""Requests and answers of the Open Inference Protocol v2, with its binary-tensor extension.

https://github.com/kserve/open-inference-protocol, and "Binary Tensor Data Extension" of Triton Inference Server.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from qkernels.serve.model import Arrays, Model, Tensor

JSON_LENGTH = "inference-header-content-length"  # of the JSON before the raw tensors


class RequestError(Exception):
    """An answer other than 200, with the sentence that goes out."""

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.headers = status, headers or {}


class _Strict(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What is not known is refused, not ignored."""


class _RequestParameters(_Strict, frozen=True):
    timeout: Annotated[int, msgspec.Meta(ge=1)] | None = None  # microseconds
    binary_data_output: bool = False


class _InputParameters(_Strict, frozen=True):
    binary_data_size: Annotated[int, msgspec.Meta(ge=0)] | None = None


class _OutputParameters(_Strict, frozen=True):
    binary_data: bool | None = None


class _Input(_Strict, frozen=True):
    name: str
    shape: list[int]
    datatype: str
    data: list[Any] | None = None
    parameters: _InputParameters = _InputParameters()


class _Output(_Strict, frozen=True):
    name: str
    parameters: _OutputParameters = _OutputParameters()


class _Message(_Strict, frozen=True):
    inputs: list[_Input]
    id: str | None = None
    outputs: list[_Output] = []
    parameters: _RequestParameters = _RequestParameters()


_decoder = msgspec.json.Decoder(_Message)


@dataclass(frozen=True)
class Request:
    """``inputs``: in the model's order, of one batch. ``outputs``: (which of the model's, as raw bytes)."""

    id: str | None
    inputs: Arrays
    outputs: list[tuple[int, bool]]
    timeout: float | None  # seconds


def decode(body: bytes, json_length: str | None, model: Model) -> Request:
    """Raises RequestError(400) that names what is wrong."""
    head, raw = _split(body, json_length)
    try:
        message = _decoder.decode(head)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _bad(f"the request is not as the protocol has it: {error}") from error
    arrays = _arrays(message.inputs, raw, model)
    if len({len(array) for array in arrays}) != 1:
        raise _bad(f"the inputs differ in their batch: {[len(array) for array in arrays]}")
    timeout = message.parameters.timeout
    return Request(
        message.id, arrays, _outputs(message, model), None if timeout is None else timeout / 1e6
    )


def encode(
    name: str, model: Model, request: Request, results: Arrays
) -> tuple[bytes, dict[str, str]]:
    """The body of an answer, and its headers."""
    described, raw = [], []
    for index, binary in request.outputs:
        values = np.ascontiguousarray(results[index])
        output: dict[str, Any] = {
            "name": model.outputs[index].name,
            "datatype": "FP32",
            "shape": values.shape,
        }
        if binary:
            raw.append(values.tobytes())
            output["parameters"] = {"binary_data_size": values.nbytes}
        elif np.isfinite(values).all():
            output["data"] = values.ravel().tolist()
        else:
            raise _bad(
                f"output {output['name']!r} has values that JSON has not: ask for binary_data"
            )
        described.append(output)
    answer: dict[str, Any] = {
        "model_name": name,
        "model_version": model.version,
        "outputs": described,
    }
    if request.id is not None:
        answer["id"] = request.id
    head = msgspec.json.encode(answer)
    if not raw:
        return head, {"content-type": "application/json"}
    headers = {"content-type": "application/octet-stream", JSON_LENGTH: str(len(head))}
    return b"".join([head, *raw]), headers


def metadata(name: str, model: Model) -> dict[str, Any]:
    def described(tensors: tuple[Tensor, ...]) -> list[dict[str, Any]]:
        return [{"name": t.name, "datatype": "FP32", "shape": [-1, *t.size]} for t in tensors]

    return {
        "name": name,
        "versions": [model.version],
        "platform": model.platform,
        "inputs": described(model.inputs),
        "outputs": described(model.outputs),
    }


def _bad(sentence: str) -> RequestError:
    return RequestError(400, sentence)


def _split(body: bytes, json_length: str | None) -> tuple[bytes, bytes]:
    if json_length is None:
        return body, b""
    digits = json_length.isascii() and json_length.isdigit() and len(json_length) < 20
    if not digits or int(json_length) > len(body):
        raise _bad(f"{JSON_LENGTH} is {json_length!r}; the body has {len(body)} bytes")
    return body[: int(json_length)], body[int(json_length) :]


def _arrays(inputs: list[_Input], raw: bytes, model: Model) -> Arrays:
    wanted = {tensor.name: tensor for tensor in model.inputs}
    found: dict[str, NDArray[np.float32]] = {}
    at = 0
    for given in inputs:
        if given.name not in wanted:
            raise _bad(f"there is no input {given.name!r}; the model takes {', '.join(wanted)}")
        if given.name in found:
            raise _bad(f"input {given.name!r} is given twice")
        count = _checked_count(given, wanted[given.name], model.max_batch)
        if given.parameters.binary_data_size is None:
            array = _from_json(given, count)
        else:
            array = _from_bytes(given, count, raw[at : at + 4 * count])
            at += 4 * count
        if not np.isfinite(array).all():
            raise _bad(f"input {given.name!r} holds NaN, infinity or a number beyond FP32")
        found[given.name] = array.reshape(given.shape)
    if at != len(raw):
        raise _bad(f"{len(raw) - at} bytes behind the JSON belong to no input")
    if missing := [name for name in wanted if name not in found]:
        raise _bad(f"input {missing[0]!r} is missing")
    return [found[name] for name in wanted]


def _checked_count(given: _Input, tensor: Tensor, max_batch: int) -> int:
    """How many values the input has."""
    if given.datatype != "FP32":
        raise _bad(f"input {given.name!r} has datatype {given.datatype!r}; FP32 is needed")
    rows = given.shape[0] if given.shape else 0
    if tuple(given.shape[1:]) != tensor.size or not 1 <= rows <= max_batch:
        needed = ", ".join(["N", *map(str, tensor.size)])
        raise _bad(
            f"input {given.name!r} has shape {given.shape}; [{needed}] with N from 1 to {max_batch} is needed"
        )
    return math.prod(given.shape)


def _from_bytes(given: _Input, count: int, raw: bytes) -> NDArray[np.float32]:
    if given.data is not None:
        raise _bad(f"input {given.name!r} has both data and binary_data_size")
    said = given.parameters.binary_data_size
    if said != 4 * count or len(raw) != said:
        raise _bad(
            f"input {given.name!r}: its shape needs {4 * count} bytes, binary_data_size is {said}, {len(raw)} came"
        )
    return np.frombuffer(raw, "<f4")


def _from_json(given: _Input, count: int) -> NDArray[np.float32]:
    if given.data is None:
        raise _bad(f"input {given.name!r} has neither data nor binary_data_size")
    try:
        values = np.asarray(given.data)
    except ValueError:  # rows of several lengths
        values = np.asarray(None)
    if values.dtype.kind not in "iuf":
        raise _bad(f"the data of input {given.name!r} are not numbers, flat or nested as its shape")
    if values.shape not in ((count,), tuple(given.shape)):
        raise _bad(
            f"the data of input {given.name!r} have shape {list(values.shape)}, not {given.shape} or [{count}]"
        )
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def _outputs(message: _Message, model: Model) -> list[tuple[int, bool]]:
    binary = message.parameters.binary_data_output
    names = [tensor.name for tensor in model.outputs]
    if not message.outputs:
        return [(i, binary) for i in range(len(names))]
    asked = {o.name: o.parameters.binary_data for o in message.outputs}
    if unknown := [name for name in asked if name not in names]:
        raise _bad(f"there is no output {unknown[0]!r}; the model gives {', '.join(names)}")
    return [(names.index(n), binary if own is None else own) for n, own in asked.items()]
