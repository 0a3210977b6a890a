"""SmoothQuant: move the spread of activation channels into the weights that read them.

Source: Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", 2022,
arXiv:2211.10438, equation 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, fx, nn

from qkernels.modules.calling import Call
from qkernels.modules.capture import Capture
from qkernels.modules.copying import copied
from qkernels.modules.eval_mode import answering
from qkernels.modules.outputs import check_same
from qkernels.modules.swap import has_hooks
from qkernels.modules.watching import watching
from qkernels.nn import ClampedReLU
from qkernels.quantization.calibration import Calibration, example_of, run_data
from qkernels.recovery.chains import (
    captured_parts,
    find_chains,
    layer,
    layer_at,
    scale_inputs,
    scale_outputs,
    set_weight,
)
from qkernels.reports import hang


@dataclass
class Smoothed:
    """The report of `smooth`.

    Attributes:
        groups: producer -> the Linear layers that were smoothed with it.
    """

    groups: dict[str, list[str]]

    def __str__(self) -> str:
        lines = [f"inputs of {sum(map(len, self.groups.values()))} linear layers smoothed"]
        return "\n".join(lines + [f"{name} -> {', '.join(r)}" for name, r in self.groups.items()])


@torch.inference_mode(False)
@torch.no_grad()
def smooth(model: nn.Module, calibration: Calibration, *, alpha: float = 0.5) -> nn.Module:
    """A float model of the same function whose Linear inputs have channels of like range.

    Input channel j is divided by `s_j = max|x_j|^alpha / max|w_j|^(1 - alpha)` and its weights are multiplied by it;
    the division goes into what gave the input: a LayerNorm read by Linear layers alone, or another Linear or Conv2d
    behind ReLUs.

    Args:
        model: float; not changed.
        calibration: as in `qkernels.quantization.calibrate`.
        alpha: 0 moves everything into the activations, 1 into the weights.

    Returns:
        The new model, with `Smoothed` as its report.

    Raises:
        ValueError: alpha outside [0, 1], or no data.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha} must be in [0, 1]")
    model = copied(model)[0].eval()
    example = example_of(model, calibration)
    if example.call is None:
        raise ValueError("the calibration function never called the model")
    groups = _groups(model, example.call)
    with answering(model):
        before = example.call.run(model)
    peaks = _peaks(model, [readers[0] for readers in groups.values()], example.data)
    done = {producer: readers for producer, readers in groups.items() if readers[0] in peaks}
    for producer, readers in done.items():
        reading = [layer(model, name) for name in readers]
        weights = torch.stack([linear.weight.abs().amax(0) for linear in reading]).amax(0)
        x = peaks[readers[0]]
        alive = (x > 0) & (weights > 0)
        scale = torch.where(alive, x.pow(alpha) / weights.pow(1 - alpha), 1.0).clamp(1e-5, 1e5)
        for linear in reading:
            set_weight(linear, scale_inputs(linear, scale))
        _divide_outputs(model.get_submodule(producer), scale)
    with answering(model):
        check_same(before, example.call.run(model), "smooth")
    return hang(model, Smoothed(done))


def _groups(model: nn.Module, call: Call) -> dict[str, list[str]]:
    """Producer -> the Linear layers that alone read it, channel for channel."""
    groups: dict[str, list[str]] = {}
    for found in captured_parts(model, call):
        for node in found.graph.nodes:
            norm = _norm_at(model, found, node)
            readers = [layer_at(model, found, user) for user in node.users]
            linear = [
                n for n in readers if n is not None and isinstance(layer(model, n), nn.Linear)
            ]
            if norm is not None and readers and len(linear) == len(readers):
                groups[norm] = linear
    for chain in find_chains(model, call):
        second, first = layer(model, chain.second), layer(model, chain.first)
        capped = any(
            isinstance(model.get_submodule(b), nn.ReLU6 | ClampedReLU) for b in chain.between
        )
        same = second.weight.shape[1] == first.weight.shape[0]
        if isinstance(second, nn.Linear) and same and not capped:
            groups[chain.first] = [chain.second]
    return groups


def _norm_at(model: nn.Module, found: Capture, node: fx.Node) -> str | None:
    """The name of the LayerNorm over one axis whose call the node is, where only this call reads its tensors."""
    if node.target is not torch.ops.aten.layer_norm.default:
        return None
    owner = found.owner(node.args[2]) if len(node.args) > 2 else None
    if owner is None or any(len(t.users) != 1 for t in node.args[2:4] if isinstance(t, fx.Node)):
        return None
    norm = model.get_submodule(owner[0])
    plain = isinstance(norm, nn.LayerNorm) and norm.weight.dim() == 1 and not has_hooks(norm)
    return owner[0] if plain and found.scope(node)[-1:] == [owner[0]] else None


def _peaks(model: nn.Module, names: list[str], data: Calibration) -> dict[str, Tensor]:
    """The largest |x| of every input channel of the named Linear layers."""
    peaks: dict[str, Tensor] = {}

    def raise_to(name: str, call: Call) -> None:
        peak = call.first.float().abs().flatten(0, -2).amax(0)
        peaks[name] = torch.maximum(peaks[name], peak) if name in peaks else peak

    with watching({n: model.get_submodule(n) for n in names}, raise_to):
        run_data(model, data)
    return {name: peak.clone() for name, peak in peaks.items()}


def _divide_outputs(producer: nn.Module, scale: Tensor) -> None:
    if not isinstance(producer, nn.LayerNorm):
        scale_outputs(cast(nn.Linear, producer), 1 / scale)
        return
    set_weight(producer, producer.weight / scale)
    if producer.bias is not None:
        producer.bias = nn.Parameter(producer.bias / scale, producer.bias.requires_grad)
