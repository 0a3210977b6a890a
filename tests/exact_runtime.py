"""ONNX Runtime as a check of exported files: it shall compute what they say, on every CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qkernels.ops import cpu_isa

# Without VNNI the int8 kernels of ONNX Runtime and OpenVINO saturate in 16 bits.
PEERS_SATURATE = cpu_isa() == "avx2"


def exact_session(path: Path, *, fused: bool = True) -> Any:
    """A session of one thread; not `fused`, or where its kernels saturate, it goes operator by operator."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    # else it quantizes the activations of weight-only layers on its own
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if not fused or PEERS_SATURATE:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
