"""AdaRound: round each weight up or down so that the layer's output, not the weight, errs least.

Source: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", 2020, arXiv:2004.10568. The error
of an output is `d G d` with d the error of the weights and G = E[x x'] of the inputs, so G is all that is kept.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qkernels.modules.calling import Call
from qkernels.modules.watching import watching
from qkernels.nn import QuantConv2d, QuantLinear, QuantModule
from qkernels.quantization.calibration import Calibration, rereadable, run_data
from qkernels.quantization.compare import comparison_points
from qkernels.quantization.fold import Layer, fold_into
from qkernels.reports import Model, hang

_STRETCH, _LOW = 1.2, -0.1  # of the rectified sigmoid, equation 23
_BETA = (20.0, 2.0)  # its regulariser's exponent, from soft to hard
_WEIGHT = 0.01  # of the regulariser, against an error relative to that of nearest rounding


@dataclass
class Rounded:
    """The report of `round_weights_`.

    Attributes:
        errors: layer -> its squared output error as a share of that of nearest rounding, 0..1.
    """

    errors: dict[str, float]

    def __str__(self) -> str:
        lines = [f"weights of {len(self.errors)} layers rounded again"]
        return "\n".join(
            lines + [f"{name}: {left:.1%} of the error left" for name, left in self.errors.items()]
        )


def round_weights_(
    quantized: Model, model: nn.Module, calibration: Calibration, *, steps: int = 300
) -> Model:
    """Choose the rounding of every int8 weight again, in place; scales stay.

    Layers are taken one by one, each seeing the inputs that its rounded predecessors give. A channel keeps nearest
    rounding where learning did not beat it, so that on the calibration data no layer gets worse.

    Args:
        quantized: as in `correct_bias_`.
        model: as in `correct_bias_`.
        calibration: as in `correct_bias_`.
        steps: of Adam, a layer.

    Returns:
        `quantized`, with `Rounded` as its report.
    """
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1")
    calibration = rereadable(calibration)
    done = {}
    for point, (name, _) in comparison_points(quantized).items():
        layer = cast(QuantModule, quantized.get_submodule(name))
        if not isinstance(layer, QuantLinear | QuantConv2d):  # others keep nearest rounding
            continue
        weight = _float_weight(model, name, point)
        gram = _gram(quantized, layer, calibration)
        if gram is None:  # the data never reached it
            continue
        rounded, done[name] = _round(weight, layer.weight_scale, gram, steps)
        layer.int8_weight = rounded.view(layer.weight_size)
    return hang(quantized, Rounded(done))


def _float_weight(model: nn.Module, name: str, point: str) -> Tensor:
    """The float weight behind an int8 layer, batch norm folded; [N, K]."""
    try:
        layer, norm = model.get_submodule(name), model.get_submodule(point)
    except AttributeError as error:
        raise ValueError(f"the float model lacks {name!r}: is it the one quantized?") from error
    layer = copy.deepcopy(layer)
    if point != name and not isinstance(norm, nn.Identity):
        fold_into(cast(Layer, layer), cast(nn.BatchNorm2d, norm))
    return cast(Tensor, layer.weight).detach().float().flatten(1)


def _gram(quantized: nn.Module, layer: QuantModule, data: Calibration) -> Tensor | None:
    """Mean of x x' over all rows that meet the weight, [groups, K, K]."""
    total: list[Tensor] = []
    rows = 0

    def add(name: str, call: Call) -> None:
        nonlocal rows
        x = _rows(layer, call.first.float())
        rows += x.shape[1]
        product = x.mT @ x
        if total:
            total[0] += product
        else:
            total.append(product)

    with watching({"": layer}, add):
        run_data(quantized, data)
    return total[0] / rows if total else None


def _rows(layer: QuantModule, x: Tensor) -> Tensor:
    """What one row of weights is multiplied with: [groups, rows, K]."""
    if isinstance(layer, QuantLinear):
        return x.reshape(1, -1, x.shape[-1])
    assert isinstance(layer, QuantConv2d)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x if x.dim() == 4 else x[None], layer._borders, mode=mode)
    patches = F.unfold(x, layer.kernel_size, layer.dilation, stride=layer.stride)
    per_group = patches.shape[1] // layer.groups
    grouped = patches.view(len(x), layer.groups, per_group, -1)
    return grouped.permute(1, 0, 3, 2).reshape(layer.groups, -1, per_group)


def _round(weight: Tensor, scale: Tensor, gram: Tensor, steps: int) -> tuple[Tensor, float]:
    """int8 [N, K] and the error left; weight [N, K], scale [N], gram [groups, K, K]."""
    steps_of_scale = weight / scale.unsqueeze(1)
    floor = steps_of_scale.floor()
    nearest = steps_of_scale.round().clamp(-127, 127)

    def error(rounded: Tensor) -> Tensor:
        d = (rounded - steps_of_scale).view(len(gram), -1, weight.shape[1])
        return ((d @ gram) * d).sum(2).flatten()  # [N], in units of scale squared

    before = error(nearest)
    unit = before.mean().clamp(min=1e-30)
    with torch.inference_mode(False), torch.enable_grad():
        part = (steps_of_scale - floor).clone()
        v = torch.logit(((part - _LOW) / _STRETCH).clamp(1e-4, 1 - 1e-4)).requires_grad_()
        optimizer = torch.optim.Adam([v], lr=0.02)
        for step in range(steps):
            up = (torch.sigmoid(v) * _STRETCH + _LOW).clamp(0, 1)
            beta = _BETA[0] + (_BETA[1] - _BETA[0]) * step / steps
            hardness = (1 - (2 * up - 1).abs().pow(beta)).sum() / len(weight)
            loss = error(floor + up).mean() / unit + _WEIGHT * hardness * (step > steps // 5)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    learned = (floor + (v.detach() > 0)).clamp(-127, 127)
    better = error(learned) < before
    rounded = torch.where(better.unsqueeze(1), learned, nearest)
    left = float(error(rounded).sum() / before.sum().clamp(min=1e-30))
    return rounded.to(torch.int8), left
