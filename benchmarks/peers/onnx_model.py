"""A model as ONNX with a free batch, once for all contenders that read it; ONNX Runtime's own static QDQ int8."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from .contenders import Call
from .model_problem import ModelProblem


@torch.inference_mode(False)
def float_onnx(problem: ModelProblem) -> Path:
    """The float model's ONNX file."""
    path = problem.file("float.onnx")
    if not path.exists():
        part = path.with_suffix(".part")
        example = problem.calibration[0][:2].clone()  # one that inference mode did not make
        torch.onnx.export(
            problem.net,
            (example,),
            part,
            input_names=["x"],
            output_names=["y"],
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            external_data=False,
            verbose=False,
        )
        part.replace(path)
    return path


def int8_onnx(problem: ModelProblem) -> Path:
    """Quantized by ONNX Runtime: QDQ, weights per channel, activations uint8, its pre-processing before."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(problem.calibration)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"x": batch.numpy()}

    path = problem.file("int8.onnx")
    if not path.exists():
        logging.getLogger().setLevel(logging.ERROR)
        prepared, part = path.with_suffix(".prepared"), path.with_suffix(".part")
        quant_pre_process(str(float_onnx(problem)), str(prepared), skip_symbolic_shape=True)
        quantize(
            str(prepared),
            str(part),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        part.replace(path)
    return path


def onnxruntime_fp32(problem: ModelProblem, threads: int) -> Call:
    return _session(float_onnx(problem), problem, threads)


def onnxruntime_int8(problem: ModelProblem, threads: int) -> Call:
    return _session(int8_onnx(problem), problem, threads)


def _session(path: Path, problem: ModelProblem, threads: int) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    feed = {"x": problem.x.numpy()}
    return lambda: session.run(None, feed)
