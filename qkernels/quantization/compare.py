"""The departure of an int8 model from its float model, layer by layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from qkernels.modules.calling import Batch, BatchReader, Call
from qkernels.modules.eval_mode import answering
from qkernels.modules.watching import watching
from qkernels.nn import QuantModule
from qkernels.quantization.fold import FOLDED
from qkernels.utils.renamed import explains_old_arguments


@dataclass(frozen=True)
class LayerError:
    """The error of one layer's output, its own and what it inherits from the layers before.

    Attributes:
        name, type: of the int8 layer.
        sqnr_db: 10 log10(sum of squares of the float output / of the difference); inf when equal.
        cosine: between the two outputs, 1.0 when equal.
    """

    name: str
    type: str
    sqnr_db: float
    cosine: float


@explains_old_arguments
def layer_errors(
    float_model: nn.Module, quant_model: nn.Module, example_inputs: Batch
) -> list[LayerError]:
    """Compare the outputs of every int8 layer with those of the float model, on one batch.

    Layers meet by name. Where a batch norm was folded, its layer is compared behind the batch
    norm of the float model: both sides then hold the same quantity.

    Args:
        float_model: the model given to `quantize` (batch norms folded or not).
        quant_model: what it returned.
        example_inputs: one batch, as in `calibrate`.

    Returns:
        One entry per int8 layer that ran, in the order of running.

    Raises:
        ValueError: for a name that `float_model` lacks, or outputs of another shape.
    """
    points = comparison_points(quant_model)
    missing = [p for p in points if p not in dict(float_model.named_modules())]
    if missing:
        raise ValueError(f"float_model has no module {missing[0]!r}: is it the model quantized?")
    with answering(float_model):
        call = BatchReader(float_model).call(example_inputs)
    return call_errors(float_model, quant_model, call)


def call_errors(float_model: nn.Module, quant_model: nn.Module, call: Call) -> list[LayerError]:
    """The `layer_errors` of one call; layers that `float_model` does not have under their name are left out."""
    known = dict(float_model.named_modules())
    points = {p: layer for p, layer in comparison_points(quant_model).items() if p in known}
    expected: dict[str, list[Tensor]] = {}
    sums: dict[str, _Sums] = {}

    def keep(point: str, call: Call, output: Tensor) -> None:
        expected.setdefault(point, []).append(output.clone())

    def compare(point: str, call: Call, output: Tensor) -> None:
        if not expected.get(point):
            raise ValueError(f"{point!r} runs in the int8 model more often than in float_model")
        sums.setdefault(point, _Sums()).add(point, expected[point].pop(0), output)

    for model, visit in ((float_model, keep), (quant_model, compare)):
        parts = {point: model.get_submodule(point) for point in points}
        with watching(parts, after=visit), answering(model):
            call.run(model)
    return [sums[point].error(*points[point]) for point in sums]


def comparison_points(quant_model: nn.Module) -> dict[str, tuple[str, str]]:
    """Module whose output is compared -> (name, type) of the int8 layer it speaks for."""
    modules: dict[str, nn.Module] = dict(quant_model.named_modules())
    behind = {str(m.into): n for n, m in modules.items() if isinstance(m, FOLDED)}
    lost = [into for into in behind if into not in modules]
    if lost:
        raise ValueError(
            f"quant_model lacks {lost[0]!r}, named when it was folded: it is a part "
            "of the model that was quantized; compare the whole"
        )
    return {
        behind.get(name, name): (name, type(module).__name__)
        for name, module in modules.items()
        if isinstance(module, QuantModule)
    }


class _Sums:
    """Running sums in float64 over the calls of one layer."""

    def __init__(self) -> None:
        self.signal = self.noise = self.other = self.product = 0.0

    def add(self, point: str, expected: Tensor, output: Tensor) -> None:
        if expected.shape != output.shape:
            raise ValueError(
                f"{point!r} gives {list(output.shape)} in the int8 model and "
                f"{list(expected.shape)} in float_model"
            )
        x, y = expected.double().flatten(), output.double().flatten()
        self.signal += x.dot(x).item()
        self.other += y.dot(y).item()
        self.product += x.dot(y).item()
        self.noise += (x - y).square().sum().item()

    def error(self, name: str, kind: str) -> LayerError:
        if self.noise == 0:
            return LayerError(name, kind, math.inf, 1.0)
        sqnr = 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf
        lengths = math.sqrt(self.signal) * math.sqrt(self.other)
        return LayerError(name, kind, sqnr, self.product / lengths if lengths else 0.0)
