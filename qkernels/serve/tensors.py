"""Tensors of the Open Inference Protocol as what a model takes, whichever way they came."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qkernels.serve.errors import bad
from qkernels.serve.model import Arrays, Model, Tensor

_TYPES: dict[str, np.dtype[Any]] = {
    "FP32": np.dtype("<f4"),
    "FP16": np.dtype("<f2"),
    "UINT8": np.dtype("u1"),
}


@dataclass(frozen=True)
class Given:
    """One input of a request. ``data``: its bytes, little-endian and row-major, or numbers, flat or nested."""

    name: str
    datatype: str
    shape: Sequence[int]
    data: bytes | memoryview | Sequence[Any]


def arrays(given: Sequence[Given], model: Model) -> Arrays:
    """In the model's order, of one batch. Raises RequestError(400) that names what is wrong."""
    wanted = {tensor.name: tensor for tensor in model.inputs}
    found: dict[str, NDArray[np.float32]] = {}
    for one in given:
        if one.name not in wanted:
            raise bad(f"there is no input {one.name!r}; the model takes {', '.join(wanted)}")
        if one.name in found:
            raise bad(f"input {one.name!r} comes twice")
        found[one.name] = _array(one, wanted[one.name], model)
    if missing := [name for name in wanted if name not in found]:
        raise bad(f"input {missing[0]!r} is missing")
    if len({len(array) for array in found.values()}) != 1:
        raise bad(f"the inputs differ in their batch: {[len(array) for array in found.values()]}")
    return [found[name] for name in wanted]


def raw_size(datatype: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor, 0 of a type that is not taken."""
    return _TYPES[datatype].itemsize * math.prod(shape) if datatype in _TYPES else 0


def _array(given: Given, tensor: Tensor, model: Model) -> NDArray[np.float32]:
    if given.datatype not in _TYPES:
        raise bad(
            f"input {given.name!r} has datatype {given.datatype!r}; FP32 is needed, or FP16, or UINT8 for pixels"
        )
    is_pixels, size = given.datatype == "UINT8", tensor.size
    if is_pixels:
        if model.image_input is None:
            raise bad(
                f"input {given.name!r} has datatype 'UINT8'; FP32 is needed, for the model's file has no image_input: "
                "how pixels become numbers"
            )
        size = (*size[1:], size[0])
    rows = given.shape[0] if given.shape else 0
    if tuple(given.shape[1:]) != size or not 1 <= rows <= model.max_batch:
        needed = ", ".join(["N", *map(str, size)])
        raise bad(
            f"input {given.name!r} has shape {list(given.shape)}; [{needed}] with N from 1 to {model.max_batch} is "
            "needed"
        )
    values = _values(given, _TYPES[given.datatype]).reshape(given.shape)
    if is_pixels:
        assert model.image_input is not None
        return model.image_input.normalised(np.ascontiguousarray(values.transpose(0, 3, 1, 2)))
    floats = values.astype(np.float32, copy=False)
    if not np.isfinite(floats).all():
        raise bad(f"input {given.name!r} holds NaN, infinity or a number beyond {given.datatype}")
    return floats


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
    if dtype.kind == "u":
        if values.dtype.kind == "f" or values.min() < 0 or values.max() > 255:
            raise bad(f"the data of input {given.name!r} are not whole numbers from 0 to 255")
        return values.astype(dtype)
    with np.errstate(over="ignore"):
        return values.astype(dtype)
