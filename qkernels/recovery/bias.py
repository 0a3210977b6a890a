"""Bias correction: quantization moves the mean of each channel; the bias moves it back.

Source: Nagel et al., 2019, arXiv:1906.04721, section 4.2 and appendix D (empirical form).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from qkernels.modules.calling import Call
from qkernels.modules.watching import watching
from qkernels.nn import QuantModule
from qkernels.nn.registry import spec_of_int8
from qkernels.quantization.calibration import Calibration, rereadable, run_data
from qkernels.quantization.compare import comparison_points
from qkernels.quantization.fold import FoldedNormAct
from qkernels.reports import Model, hang


@dataclass
class Corrected:
    """The report of `correct_bias_`.

    Attributes:
        shifts: layer -> the largest correction of one of its channels, in the order of running.
    """

    shifts: dict[str, float]

    def __str__(self) -> str:
        largest = max(self.shifts.values(), default=0.0)
        lines = [f"biases of {len(self.shifts)} layers corrected, by up to {largest:.3g}"]
        return "\n".join(lines + [f"{name}: {shift:.3g}" for name, shift in self.shifts.items()])


def correct_bias_(quantized: Model, model: nn.Module, calibration: Calibration) -> Model:
    """Give every int8 layer the channel means that the float model has there, in place.

    Layers are corrected in the order they run, each behind its corrected predecessors: one pass of the data a layer,
    holding its sums alone. Of a layer called several times the mean over all calls counts.

    Args:
        quantized: what `quantize(model, ...)` returned.
        model: the float model that was quantized.
        calibration: as in `qkernels.quantization.calibrate`, without labels.

    Returns:
        `quantized`, with `Corrected` as its report.

    Raises:
        ValueError: no data, or a `model` that lacks a layer of `quantized`.
    """
    calibration = rereadable(calibration)
    points = comparison_points(quantized)
    missing = [point for point in points if point not in dict(model.named_modules())]
    if missing:
        raise ValueError(f"the float model has no module {missing[0]!r}: is it the one quantized?")
    specs = {point: spec_of_int8(kind) for point, (_, kind) in points.items()}
    behind_act = {n for n, m in quantized.named_modules() if isinstance(m, FoldedNormAct)}
    channels = {  # behind an activation a mean says nothing of the bias before it
        p: spec.channel_axis
        for p, spec in specs.items()
        if spec is not None and spec.observed and p not in behind_act
    }
    done: dict[str, float] = {}
    for point, target in _means(model, channels, calibration).items():
        name, _ = points[point]
        layer = cast(QuantModule, quantized.get_submodule(name))
        shift = target - _means(quantized, {name: channels[point]}, calibration)[name]
        layer.bias = shift if layer.bias is None else layer.bias + shift
        done[name] = float(shift.abs().max())
    return hang(quantized, Corrected(done))


class _Mean:
    """Running mean of each channel, in float64."""

    def __init__(self, channel: int) -> None:
        self.channel, self.total, self.count = channel, torch.zeros(()), 0

    def add(self, y: Tensor) -> None:
        rows = y.movedim(self.channel, -1).flatten(0, -2)
        self.total = self.total + rows.double().sum(0)
        self.count += len(rows)

    def value(self) -> Tensor:
        return (self.total / self.count).float()


def _means(model: nn.Module, channels: dict[str, int], data: Calibration) -> dict[str, Tensor]:
    """Channel means of the named modules' outputs, in the order they run: N values each.

    `channels` says which dimension they are. The rows of all calls count alike.
    """
    means: dict[str, _Mean] = {}

    def add(name: str, call: Call, y: Tensor) -> None:
        means.setdefault(name, _Mean(channels[name])).add(y)

    with watching({n: model.get_submodule(n) for n in channels}, after=add):
        run_data(model, data)
    return {name: mean.value() for name, mean in means.items()}
