"""OpenVINO: float32, bfloat16, and int8 through NNCF's post-training quantization."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from .contenders import Call
from .model_problem import ModelProblem
from .onnx_model import float_onnx


def openvino(precision: str) -> Callable[[ModelProblem, int], Call]:
    """A contender's `build` for f32, bf16 or int8."""
    return partial(_build, precision)


def _build(precision: str, problem: ModelProblem, threads: int) -> Call:
    import openvino as ov

    model = ov.Core().read_model(int8_ir(problem) if precision == "int8" else float_onnx(problem))
    model.reshape([problem.batch, *problem.shape])
    config: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    if precision != "int8":  # what NNCF leaves in float runs in the type that OpenVINO prefers here
        config["INFERENCE_PRECISION_HINT"] = precision
    request = ov.Core().compile_model(model, "CPU", config).create_infer_request()
    x = problem.x.numpy()  # the tensor below does not keep it
    request.set_input_tensor(ov.Tensor(x, shared_memory=True))

    def call(x: Any = x) -> Any:
        request.infer()
        return request.get_output_tensor().data

    return call


def int8_ir(problem: ModelProblem) -> Path:
    """Quantized by NNCF as its documentation has it, on the data that all contenders calibrate on."""
    import nncf
    import openvino as ov

    path = problem.file("int8.xml")
    if not path.exists():
        nncf.set_log_level(logging.ERROR)
        data = [batch.numpy() for batch in problem.calibration]
        kind = None if problem.is_images else nncf.ModelType.TRANSFORMER
        model = ov.Core().read_model(float_onnx(problem))
        with contextlib.redirect_stdout(io.StringIO()):  # its bars
            model = nncf.quantize(model, nncf.Dataset(data), subset_size=len(data), model_type=kind)
        part = path.with_name("part.xml")
        ov.save_model(model, part, compress_to_fp16=False)
        part.with_suffix(".bin").replace(path.with_suffix(".bin"))
        part.replace(path)
    return path
