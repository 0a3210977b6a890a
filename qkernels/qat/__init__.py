"""Quantization-aware training: `prepare_qat`, train as any model, `convert_qat`; or all of it by `fit_qat`."""

from qkernels.qat.fit import QatResult, fit_qat
from qkernels.qat.modules import FakeQuantConv2d, FakeQuantLinear, fake_quantize
from qkernels.qat.prepare import convert_qat, prepare_qat

__all__ = [
    "FakeQuantConv2d",
    "FakeQuantLinear",
    "QatResult",
    "convert_qat",
    "fake_quantize",
    "fit_qat",
    "prepare_qat",
]
