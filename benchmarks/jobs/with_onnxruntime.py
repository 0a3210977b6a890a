"""The jobs with ONNX Runtime."""

from typing import Any

import torch

from . import Case


def dynamic(case: Case) -> Any:
    from onnxruntime import InferenceSession
    from onnxruntime.quantization import quant_pre_process, quantize_dynamic

    float_file, int8_file = case.folder / "float.onnx", case.folder / "int8.onnx"
    torch.onnx.export(case.model, (case.x,), float_file, input_names=["x"])
    quant_pre_process(float_file, case.folder / "inferred.onnx")
    quantize_dynamic(case.folder / "inferred.onnx", int8_file)
    return InferenceSession(int8_file).run(None, {"x": case.x.numpy()})[0]


def static(case: Case) -> Any:
    from onnxruntime import InferenceSession
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(case.batches)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"x": batch.numpy()}

    float_file, int8_file = case.folder / "float.onnx", case.folder / "int8.onnx"
    torch.onnx.export(case.model, (case.x,), float_file, input_names=["x"])
    quantize_static(float_file, int8_file, Reader())
    return InferenceSession(int8_file).run(None, {"x": case.x.numpy()})[0]


def exclude(case: Case) -> Any:
    import onnx
    from onnxruntime import InferenceSession
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(case.batches)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"x": batch.numpy()}

    float_file, int8_file = case.folder / "float.onnx", case.folder / "int8.onnx"
    torch.onnx.export(case.model, (case.x,), float_file, input_names=["x"])
    last = [node.name for node in onnx.load(float_file).graph.node if node.op_type == "Gemm"][-1]
    quantize_static(float_file, int8_file, Reader(), nodes_to_exclude=[last])
    return InferenceSession(int8_file).run(None, {"x": case.x.numpy()})[0]


save_and_load = static  # its models are files
without_torch = static  # its runtime needs none
