"""ONNX Runtime behind the HTTP layer of qkernels: the flags are those of `qkernels serve`, the file is ONNX."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import onnxruntime

from qkernels.input_size import Size
from qkernels.serve.__main__ import main
from qkernels.serve.model import Arrays, Opened


def open_onnx(path: Path, sizes: Sequence[Size], threads: int) -> Opened:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])

    def run(inputs: Arrays) -> Arrays:
        outputs: Arrays = session.run(None, {"x": inputs[0]})
        return outputs

    return Opened("1", "onnxruntime", tuple(size[1:] for size in sizes), None, run)


if __name__ == "__main__":
    with mock.patch("qkernels.serve.repository.open_model", open_onnx):
        main(sys.argv[1:])
