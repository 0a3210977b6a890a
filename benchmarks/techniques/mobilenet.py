"""Rows of the table: a MobileNetV2, whose depthwise layers one scale a tensor serves badly.

All rows share one training, of half width and guided by the teacher; the int8 column is compared with the float one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

import qkernels
from qkernels import models
from qkernels.recovery import correct_bias_, equalize
from techniques.quantization import fitted
from techniques.row import Outcome, Row, Setting


def quantized(
    weight: str, *, equal: bool = False, bias: bool = False
) -> Callable[[Setting], Outcome]:
    def run(setting: Setting) -> Outcome:
        net = _mobilenet(setting)
        model = equalize(net) if equal else net
        batches = setting.calibration()
        int8 = qkernels.quantize(model, {"weight": weight}, calibration=batches)
        if bias:
            correct_bias_(int8, model, batches)
        return Outcome(net, int8)

    return run


def trained(setting: Setting) -> Outcome:
    """By QAT, from where one scale a tensor had left it."""
    net = _mobilenet(setting)
    return Outcome(net, *fitted(setting, net, teacher=True, weight="per_tensor"))


def _mobilenet(setting: Setting) -> nn.Module:
    """Of half width, distilled; trained by the first row that asks, read by the others."""
    kinds = {"num_classes": setting.data.num_classes, "in_channels": setting.data.image_shape[0]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setting.seed)
        fresh = models.create("mobilenet_v2", width_mult=0.5, dropout=0.0, **kinds)
    return setting.beside("mobilenet").fit(fresh, teacher=setting.teacher)


def _row(
    name: str, ids: str, run: Callable[[Setting], Outcome], code: str = "recovery/equalize"
) -> Row:
    test = "qat/test_qat" if code.startswith("qat") else "recovery/test_equalize"
    paths = (f"qkernels/{code}.py", f"tests/{test}.py", "docs/quantization.md")
    return Row(f"MobileNetV2, {name}", ("S4-5", *ids.split()), *paths, run)


TENSOR, CHANNEL, BIAS = "per_tensor", "per_channel", "recovery/bias"
ROWS = [
    _row("one scale a tensor", "S3-1", quantized(TENSOR)),
    _row("one scale a tensor, equalized", "S3-1", quantized(TENSOR, equal=True)),
    _row("one scale a tensor, equalized, biases corrected", "S3-1", quantized(TENSOR, equal=True, bias=True), BIAS),
    _row("one scale a tensor, QAT", "S3-1 S2-9", trained, "qat/fit"),
    _row("one scale a channel", "S3-2", quantized(CHANNEL)),
    _row("one scale a channel, equalized, biases corrected", "S3-2", quantized(CHANNEL, equal=True, bias=True), BIAS),
]  # fmt: skip
