"""Quantization-aware training: `prepare_qat`, train as any model, `convert_qat`."""

from qkernels.qat.modules import FakeQuantConv2d, FakeQuantLinear, fake_quantize
from qkernels.qat.prepare import convert_qat, prepare_qat

__all__ = ["FakeQuantConv2d", "FakeQuantLinear", "convert_qat", "fake_quantize", "prepare_qat"]
