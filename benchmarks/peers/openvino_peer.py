"""OpenVINO: FakeQuantize in front of and behind a layer with an int8 constant, as NNCF writes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .problem import INPUT_SCALE, OUTPUT_SCALE, Problem, Unsupported


def build(problem: Problem, threads: int) -> Callable[[], object]:
    import openvino as ov
    from openvino import opset13 as ops

    scheme = problem.scheme
    if scheme == "dynamic":
        raise Unsupported("quantizes activations dynamically for compressed weights only")
    weight, scale = (t.numpy() for t in problem.weight)
    shape = list(problem.x.shape)
    x = problem.x.contiguous().numpy()
    axes = [-1] + [1] * (weight.ndim - 1)

    def fake(value: Any, step: float, as_bytes: bool = False) -> Any:
        low, high = np.float32(-128 * step), np.float32(127 * step)
        out = (np.float32(0), np.float32(255)) if as_bytes else (low, high)
        return ops.fake_quantize(value, low, high, *out, 256)

    source = ops.parameter(shape, np.uint8 if scheme == "int8" else np.float32, name="x")
    if scheme == "int8":
        x = (np.clip(np.round(x / INPUT_SCALE), -128, 127) + 128).astype(np.uint8)
        value = ops.convert(source, "f32")
        value = ops.multiply(ops.subtract(value, np.float32(128)), np.float32(INPUT_SCALE))
    else:
        value = fake(source, INPUT_SCALE) if scheme == "static" else source
    wide = ops.convert(ops.constant(weight), "f32")
    w: Any = ops.multiply(wide, ops.constant(scale.reshape(axes)))
    if problem.is_conv:
        c = problem.conv
        geometry = ([c.stride] * 2, [c.padding] * 2, [c.padding] * 2, [c.dilation] * 2)
        if c.groups == 1:
            y = ops.convolution(value, w, *geometry)
        else:
            grouped = [c.groups, c.outputs // c.groups, *weight.shape[1:]]
            wide = ops.convert(ops.constant(weight.reshape(grouped)), "f32")
            w = ops.multiply(wide, ops.constant(scale.reshape([*grouped[:2], 1, 1, 1])))
            y = ops.group_convolution(value, w, *geometry)
        bias = problem.layer.bias.numpy().reshape(1, -1, 1, 1)
    else:
        y = ops.matmul(value, w, False, True)
        bias = problem.layer.bias.numpy()
    y = ops.add(y, ops.constant(bias))
    if scheme == "int8":
        y = ops.convert(fake(y, OUTPUT_SCALE, as_bytes=True), "u8")
    elif scheme == "static":
        y = fake(y, OUTPUT_SCALE)
    config: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    config["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0  # weight-only means float activations
    config["INFERENCE_PRECISION_HINT"] = "bf16" if scheme.endswith("bf16") else "f32"
    compiled = ov.Core().compile_model(ov.Model([y], [source], "layer"), "CPU", config)
    request = compiled.create_infer_request()
    request.set_input_tensor(ov.Tensor(x, shared_memory=True))

    def call() -> np.ndarray:
        request.infer()
        return request.get_output_tensor().data

    return call
