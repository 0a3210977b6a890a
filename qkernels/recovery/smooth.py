"""SmoothQuant: move the spread of activation channels into the weights that read them.

Source: Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", 2022,
arXiv:2211.10438, equation 4.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, fx, nn

from qkernels.nn import ClampedReLU
from qkernels.quantization.calibration import Calibration, run_data
from qkernels.quantization.fold import has_hooks
from qkernels.recovery.chains import (
    find_chains,
    layer,
    scale_inputs,
    scale_outputs,
    set_weight,
    traced_parts,
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
    model = copy.deepcopy(model).eval()
    groups = _groups(model)
    peaks = _peaks(model, [readers[0] for readers in groups.values()], calibration)
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
    return hang(model, Smoothed(done))


def _groups(model: nn.Module) -> dict[str, list[str]]:
    """Producer -> the Linear layers that alone read it, channel for channel."""
    groups: dict[str, list[str]] = {}
    for prefix, part, graph in traced_parts(model):
        for node in graph.nodes:
            if _is_norm(part, node) and _all_linear(part, node):
                groups[prefix + node.target] = [prefix + str(user.target) for user in node.users]
    for chain in find_chains(model):
        second, first = layer(model, chain.second), layer(model, chain.first)
        capped = any(
            isinstance(model.get_submodule(b), nn.ReLU6 | ClampedReLU) for b in chain.between
        )
        same = second.weight.shape[1] == first.weight.shape[0]
        if isinstance(second, nn.Linear) and same and not capped:
            groups[chain.first] = [chain.second]
    return groups


def _is_norm(model: nn.Module, node: fx.Node) -> bool:
    if node.op != "call_module":
        return False
    module = model.get_submodule(str(node.target))
    if not isinstance(module, nn.LayerNorm) or module.weight is None:
        return False
    once = sum(n.target == node.target for n in node.graph.nodes) == 1
    return module.weight.dim() == 1 and once and not has_hooks(module)


def _all_linear(model: nn.Module, node: fx.Node) -> bool:
    def is_linear(user: fx.Node) -> bool:
        if user.op != "call_module":
            return False
        once = sum(n.target == user.target for n in user.graph.nodes) == 1
        module = model.get_submodule(str(user.target))
        return type(module) is nn.Linear and once and not has_hooks(module)

    return bool(node.users) and all(map(is_linear, node.users))


def _peaks(model: nn.Module, names: list[str], data: Calibration) -> dict[str, Tensor]:
    """The largest |x| of every input channel of the named Linear layers."""
    peaks: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def watch(module: nn.Module, args: tuple[Tensor]) -> None:
            peak = args[0].float().abs().flatten(0, -2).amax(0)
            peaks[name] = torch.maximum(peaks[name], peak) if name in peaks else peak

        return watch

    handles = [model.get_submodule(n).register_forward_pre_hook(hook(n)) for n in names]
    try:
        run_data(model, data)
    finally:
        for handle in handles:
            handle.remove()
    return {name: peak.clone() for name, peak in peaks.items()}


def _divide_outputs(producer: nn.Module, scale: Tensor) -> None:
    if not isinstance(producer, nn.LayerNorm):
        scale_outputs(cast(nn.Linear, producer), 1 / scale)
        return
    set_weight(producer, producer.weight / scale)
    if producer.bias is not None:
        producer.bias = nn.Parameter(producer.bias / scale, producer.bias.requires_grad)
