"""Messages of inference.proto to and from what the server has of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from qkernels.serve import protocol
from qkernels.serve.errors import bad
from qkernels.serve.grpc import inference_pb2 as pb
from qkernels.serve.inference import Answered
from qkernels.serve.model import Model
from qkernels.serve.protocol import Request, Wanted
from qkernels.serve.tensors import Given, arrays

_CONTENTS = {
    "FP32": "fp32_contents",
    "UINT8": "uint_contents",
    "INT64": "int64_contents",
    "INT32": "int_contents",
}


def decode(message: Any, model: Model) -> Request:
    """What a ModelInferRequest asks. Raises RequestError(400) that names what is wrong."""
    parameters = message.parameters
    flags = [
        _flag(parameters, name) if parameters else None
        for name in ("sequence_start", "sequence_end")
    ]
    protocol.refuse_sequence(*flags)
    inputs = arrays(_given(message), model)
    outputs = [_wanted(one, model) for one in message.outputs]
    if len({one.index for one in outputs}) < len(outputs):
        raise bad("an output is asked for twice")
    return Request(
        message.id or None,
        inputs,
        outputs or [Wanted(i) for i in range(len(model.outputs))],
        _timeout(parameters) if parameters else None,
    )


def encode(answered: Answered) -> Any:
    """The ModelInferResponse of an answer, whose contents are raw."""
    request, model = answered.request, answered.model
    response = pb.ModelInferResponse(
        model_name=answered.served.name,
        model_version=answered.version.number,
        id=request.id or "",
    )
    for wanted in request.outputs:
        values, datatype = answered.results[wanted.index], "FP32"
        shape = values.shape
        if wanted.classes:
            texts = protocol.classified(values, wanted.classes, model)
            raw, datatype, shape = protocol.as_bytes(texts), "BYTES", texts.shape
        else:
            raw = np.ascontiguousarray(values).tobytes()
        response.outputs.add(name=model.outputs[wanted.index].name, datatype=datatype, shape=shape)
        response.raw_output_contents.append(raw)
    return response


def _given(message: Any) -> list[Given]:
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise bad(f"{len(message.inputs)} inputs have {len(raw)} raw contents")
    given = []
    for i, one in enumerate(message.inputs):
        if one.parameters and "shared_memory_region" in one.parameters:
            region = one.parameters["shared_memory_region"].string_param
            protocol.refuse_shared_memory(one.name, region)
        data: Any
        if raw:
            if one.HasField("contents"):
                raise bad(f"input {one.name!r} has both contents and raw contents")
            data = raw[i]
        elif one.datatype in _CONTENTS:
            data = np.array(getattr(one.contents, _CONTENTS[one.datatype]))
        elif one.datatype == "FP16":
            raise bad(f"input {one.name!r} has datatype 'FP16', which needs raw contents")
        else:
            data = b""  # of a type that is refused by its name
        given.append(Given(one.name, one.datatype, list(one.shape), data))
    return given


def _wanted(one: Any, model: Model) -> Wanted:
    classes = 0
    if one.parameters:
        if "shared_memory_region" in one.parameters:
            region = one.parameters["shared_memory_region"].string_param
            protocol.refuse_shared_memory(one.name, region)
        classes = _whole(one.parameters, "classification") or 0
    return Wanted(protocol.output_index(one.name, model), is_binary=True, classes=classes)


def _timeout(parameters: Any) -> float | None:
    microseconds = _whole(parameters, "timeout")
    return microseconds / 1e6 if microseconds else None


def _value(parameters: Any, name: str) -> Any:
    if name not in parameters:
        return None
    which = parameters[name].WhichOneof("parameter_choice")
    return None if which is None else getattr(parameters[name], which)


def _flag(parameters: Any, name: str) -> bool | None:
    value = _value(parameters, name)
    if value is not None and not isinstance(value, bool):
        raise bad(f"parameter {name!r} is {value!r}, which is no bool")
    return value


def _whole(parameters: Any, name: str) -> int | None:
    value = _value(parameters, name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise bad(f"parameter {name!r} is {value!r}, which is no whole number from 0 on")
    return value
