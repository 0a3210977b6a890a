"""What pruning buys: times of a model before and after, in float32 and as int8."""

from __future__ import annotations

from typing import Any

from torch import nn

from qkernels.measuring.speed import Speeds, measure_speed
from qkernels.quantization import quantize
from qkernels.quantization.calibration import Calibration, rereadable


def compare_speed(
    before: nn.Module,
    after: nn.Module,
    calibration: Calibration,
    image_shape: tuple[int, int, int],
    **how: Any,
) -> dict[str, Speeds]:
    """Time two float models in turns, in float32 and as static int8; `how` as `measure_speed` takes it.

    Returns:
        "float32", "float32 pruned", "int8", "int8 pruned" -> figures. Kept as `ChannelReport.speed` they are printed.
    """
    calibration = rereadable(calibration)
    models = {"float32": before, "float32 pruned": after}
    for name, model in (("int8", before), ("int8 pruned", after)):
        models[name] = quantize(model, "static", calibration)
    return measure_speed(models, image_shape, **how)
