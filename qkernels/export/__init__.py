"""Quantized models for other runtimes."""

from qkernels.export.onnx import export_onnx

__all__ = ["export_onnx"]
