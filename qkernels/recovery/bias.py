"""Bias correction: quantization moves the mean of each channel; the bias moves it back.

Source: Nagel et al., 2019, arXiv:1906.04721, section 4.2 and appendix D (empirical form).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from qkernels.nn import QuantConv2d, QuantModule
from qkernels.quantization.calibration import Calibration, rereadable, run_data
from qkernels.quantization.compare import comparison_points


class _Reached(Exception):
    """Ends a forward pass behind the layer in question."""


def correct_bias(
    quantized: nn.Module, model: nn.Module, calibration: Calibration
) -> dict[str, float]:
    """Give every int8 layer the channel means that the float model has there, in place.

    Layers are corrected in the order they run, each behind its corrected predecessors: one pass of the data a layer,
    up to that layer, holding its sums alone.

    Args:
        quantized: what `quantize(model, ...)` returned.
        model: the float model that was quantized.
        calibration: as in `qkernels.quantization.calibrate`, without labels.

    Returns:
        layer -> largest correction of one of its channels, in the order of running.

    Raises:
        ValueError: no data, or a `model` that lacks a layer of `quantized`.
    """
    calibration = rereadable(calibration)
    points = comparison_points(quantized)
    missing = [point for point in points if point not in dict(model.named_modules())]
    if missing:
        raise ValueError(f"the float model has no module {missing[0]!r}: is it the one quantized?")
    targets: dict[str, _Mean] = {}
    _watch_all(model, points, targets, calibration)
    done: dict[str, float] = {}
    for point in targets:
        name, _ = points[point]
        layer = quantized.get_submodule(name)
        assert isinstance(layer, QuantModule)
        mean = _mean_at(quantized, layer, calibration)
        shift = targets[point].value() - mean
        layer.bias = shift if layer.bias is None else layer.bias + shift
        done[name] = float(shift.abs().max())
    return done


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


def _watch_all(
    model: nn.Module,
    points: dict[str, tuple[str, str]],
    means: dict[str, _Mean],
    data: Calibration,
) -> None:
    """Channel means of the float model at every point, in one pass: N values a layer."""

    def hook(point: str) -> Callable[..., None]:
        channel = 1 if points[point][1] == "QuantConv2d" else -1
        return lambda module, args, y: means.setdefault(point, _Mean(channel)).add(y)

    handles = [model.get_submodule(p).register_forward_hook(hook(p)) for p in points]
    try:
        run_data(model, data)
    finally:
        for handle in handles:
            handle.remove()


def _mean_at(quantized: nn.Module, layer: QuantModule, data: Calibration) -> Tensor:
    mean = _Mean(1 if isinstance(layer, QuantConv2d) else -1)

    def watch(module: nn.Module, args: object, y: Tensor) -> None:
        mean.add(y)
        raise _Reached

    handle = layer.register_forward_hook(watch)
    try:
        run_data(_Stopping(quantized), data)
    finally:
        handle.remove()
    return mean.value()


class _Stopping(nn.Module):
    """A model whose calls end where a hook raises `_Reached`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: object, **kwargs: object) -> None:
        try:
            self.model(*args, **kwargs)
        except _Reached:
            return
