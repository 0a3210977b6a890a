"""Tensors of the Open Inference Protocol as what a model takes, whichever way they came."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qkernels.serve.errors import bad
from qkernels.serve.model import Arrays, Model, Tensor

_TYPES: dict[str, np.dtype[Any]] = {
    "FP32": np.dtype("<f4"),
    "FP16": np.dtype("<f2"),
    "UINT8": np.dtype("u1"),
    "INT64": np.dtype("<i8"),
    "INT32": np.dtype("<i4"),
}
_OF_IDS = ("INT64", "INT32")


@dataclass(frozen=True)
class Given:
    """One input of a request. ``data``: its bytes, little-endian and row-major, or numbers, flat or nested."""

    name: str
    datatype: str
    shape: Sequence[int]
    data: bytes | memoryview | Sequence[Any]


def arrays(given: Sequence[Given], model: Model) -> Arrays:
    """Arrays in the model's order, of one batch. Raises RequestError(400) that names what is wrong."""
    wanted = {tensor.name: tensor for tensor in model.inputs}
    found: dict[str, NDArray[Any]] = {}
    for one in given:
        if one.name not in wanted:
            raise bad(f"there is no input {one.name!r}; the model takes {', '.join(wanted)}")
        if one.name in found:
            raise bad(f"input {one.name!r} comes twice")
        found[one.name] = _array(one, wanted[one.name], model)
    if missing := [name for name in wanted if name not in found]:
        raise bad(f"input {missing[0]!r} is missing")
    ordered = [found[name] for name in wanted]
    if differ := model.differ(ordered):
        raise bad(differ)
    return ordered


def raw_size(datatype: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor, 0 of a type that is not taken."""
    return _TYPES[datatype].itemsize * math.prod(shape) if datatype in _TYPES else 0


def _array(given: Given, tensor: Tensor, model: Model) -> NDArray[Any]:
    if tensor.id_count is not None:
        return _ids(given, tensor, model)
    if given.datatype not in _TYPES or given.datatype in _OF_IDS:
        raise bad(
            f"input {given.name!r} has datatype {given.datatype!r}; FP32 is needed, or FP16, or UINT8 for pixels"
        )
    is_pixels = given.datatype == "UINT8"
    if is_pixels:
        if model.image_input is None:
            raise bad(
                f"input {given.name!r} has datatype 'UINT8'; FP32 is needed, for the model's file has no image_input: "
                "how pixels become numbers"
            )
        tensor = replace(tensor, size=(*tensor.size[1:], tensor.size[0]))
    values = _shaped(given, tensor, model)
    if is_pixels:
        assert model.image_input is not None
        return model.image_input.normalised(np.ascontiguousarray(values.transpose(0, 3, 1, 2)))
    floats = values.astype(np.float32, copy=False)
    if not np.isfinite(floats).all():
        raise bad(f"input {given.name!r} holds NaN, infinity or a number beyond {given.datatype}")
    return floats


def _ids(given: Given, tensor: Tensor, model: Model) -> NDArray[np.int64]:
    if given.datatype not in _OF_IDS:
        raise bad(
            f"input {given.name!r} has datatype {given.datatype!r}; INT64 is needed, or INT32"
        )
    ids = _shaped(given, tensor, model).astype(np.int64, copy=False)
    if wrong := tensor.wrong_id(ids):
        raise bad(wrong)
    return ids


def _shaped(given: Given, tensor: Tensor, model: Model) -> NDArray[Any]:
    if not tensor.takes(given.shape, model.max_batch):
        raise bad(
            f"input {given.name!r} has shape {list(given.shape)}; {tensor.needed(model.max_batch)} is needed"
        )
    return _values(given, _TYPES[given.datatype]).reshape(given.shape)


def _values(given: Given, dtype: np.dtype[Any]) -> NDArray[Any]:
    if isinstance(given.data, (bytes, memoryview)):
        needed = dtype.itemsize * math.prod(given.shape)
        if len(given.data) != needed:
            raise bad(
                f"input {given.name!r}: its shape needs {needed} bytes, {len(given.data)} came"
            )
        return np.frombuffer(given.data, dtype)
    try:
        values = np.asarray(given.data)
    except ValueError:  # rows of several lengths
        values = np.asarray(None)
    if values.dtype.kind not in "iuf":
        raise bad(f"the data of input {given.name!r} are not numbers, flat or nested as its shape")
    count = math.prod(given.shape)
    if values.shape not in ((count,), tuple(given.shape)):
        raise bad(
            f"the data of input {given.name!r} have shape {list(values.shape)}, not {list(given.shape)} or [{count}]"
        )
    if dtype.kind in "ui":
        limits = np.iinfo(dtype)
        if values.dtype.kind == "f" or values.min() < limits.min or values.max() > limits.max:
            raise bad(
                f"the data of input {given.name!r} are not whole numbers from {limits.min} to {limits.max}"
            )
        return values.astype(dtype)
    with np.errstate(over="ignore"):
        return values.astype(dtype)
