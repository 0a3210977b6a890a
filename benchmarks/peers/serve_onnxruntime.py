"""ONNX Runtime behind the HTTP layer of qkernels: the flags are those of `qkernels serve`, the file is ONNX."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import onnxruntime

from qkernels.serve.__main__ import main
from qkernels.serve.model import Arrays, Opened, named
from qkernels.utils.input_size import Size


def open_onnx(path: Path, sizes: Sequence[Size], threads: int) -> Opened:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])

    given = session.get_inputs()

    def run(inputs: Arrays) -> Arrays:
        feed = {one.name: x for one, x in zip(given, inputs, strict=True)}
        outputs: Arrays = session.run(None, feed)
        return outputs

    inputs = tuple(
        replace(tensor, id_count=1 << 31) if one.type == "tensor(int64)" else tensor
        for one, tensor in zip(given, named("input", [size[1:] for size in sizes]), strict=True)
    )
    return Opened("1", "onnxruntime", inputs, None, run)


if __name__ == "__main__":
    with mock.patch("qkernels.serve.repository.open_model", open_onnx):
        main(sys.argv[1:])
