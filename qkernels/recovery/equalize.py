"""Cross-layer equalization: give both layers of a pair like ranges in every channel between them.

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, arXiv:1906.04721,
sections 4.1 (equalization) and 4.1.3 (absorbing high biases).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from qkernels.modules.calling import example_call
from qkernels.modules.capture import guessed_call
from qkernels.modules.copying import copied
from qkernels.modules.eval_mode import answering
from qkernels.modules.outputs import check_same
from qkernels.modules.swap import swap_modules
from qkernels.nn import ClampedReLU
from qkernels.quantization.fold import Folds, fold_batch_norm_
from qkernels.recovery.chains import (
    Chain,
    by_input,
    find_chains,
    layer,
    scale_inputs,
    scale_outputs,
    set_bias,
    set_weight,
)
from qkernels.reports import hang, report

_ROUNDS = 40
_ENOUGH = 1e-4  # a round that moves every log scale by less ends the search


@dataclass
class Equalized:
    """The report of `equalize`.

    Attributes:
        pairs: (first, second) -> the largest ratio of two channel scales moved between them.
        absorbed: (first, second) -> number of channels whose high bias moved into the second.
        notes: sentences about what stood in the way.
    """

    pairs: dict[tuple[str, str], float] = field(default_factory=dict)
    absorbed: dict[tuple[str, str], int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{len(self.pairs)} pairs of layers equalized"]
        for pair, ratio in self.pairs.items():
            moved = f", {self.absorbed[pair]} high biases absorbed" if pair in self.absorbed else ""
            lines.append(f"{pair[0]} -> {pair[1]}: channels moved by up to {ratio:.3g}x{moved}")
        return "\n".join(lines + [f"note: {note}" for note in self.notes])


@torch.inference_mode(False)
@torch.no_grad()
def equalize(model: nn.Module, example_inputs: Any = None, *, absorb: bool = False) -> nn.Module:
    """A float model of the same function whose weights suffer less from one scale a tensor.

    Batch norms are folded; then for each pair with ranges r1 (of output channels of the first) and r2 (of input
    channels of the second), `s = sqrt(r1 / r2)` leaves the first and enters the second, again and again until
    nothing moves (chains over depthwise layers need it). A ReLU6 between becomes a `ClampedReLU` with ceilings
    6 / s, so that the function stays; the paper replaces it by a ReLU, which changes the trained model.

    Args:
        model: float; not changed.
        example_inputs: what the model is called with, to see which layers follow each other: a tensor, a tuple of
            positional or a dict of keyword arguments. None: an input is guessed from the first layer.
        absorb: also move biases so high that a ReLU hardly ever cuts (beta - 3 |gamma| > 0 of the batch norm) into
            the next layer, where it pads nothing. This changes the function for the rare value below.

    Returns:
        The new model, with `Equalized` as its report. A model without pairs comes back folded, with a note.
    """
    model = copied(model)[0].eval()
    call = guessed_call(model) if example_inputs is None else example_call(example_inputs)
    if call is None:
        return hang(
            model, Equalized(notes=["no input of the model is known: give example_inputs="])
        )
    with answering(model):
        before = call.run(model)
    floors = _bias_floors(model) if absorb else {}
    folds = report(fold_batch_norm_(model, call), Folds)
    floors = {name: floors[norm] for name, norm in folds.pairs if norm in floors}
    chains, done = find_chains(model, call), Equalized(notes=list(folds.notes))
    if not chains:
        done.notes.append("no two layers follow each other with only ReLUs or pools between")
        return hang(model, done)
    widths = {chain: layer(model, chain.first).weight.shape[0] for chain in chains}
    moved = {chain: torch.ones(n, dtype=torch.float32) for chain, n in widths.items()}
    for _ in range(_ROUNDS):
        steps = [_equalize_pair(model, chain, moved[chain]) for chain in chains]
        if max(steps) < _ENOUGH:
            break
    for chain in chains:
        _scale_ceilings(model, chain, moved[chain])
        scale = moved[chain]
        done.pairs[chain.first, chain.second] = float(scale.max() / scale.min())
    with answering(model):
        check_same(before, call.run(model), "equalize")
    for chain in chains:
        if chain.first in floors:
            _absorb(model, chain, floors[chain.first] / moved[chain], done)
    return hang(model, done)


def _equalize_pair(model: nn.Module, chain: Chain, moved: Tensor) -> float:
    """One step of a pair, noted in `moved`; the largest change of a log scale."""
    first, second = layer(model, chain.first), layer(model, chain.second)
    low, high = first.weight.flatten(1).abs().amax(1), by_input(second, moved.numel()).abs().amax(1)
    alive = (low > 0) & (high > 0)  # a dead channel has nothing to share
    scale = torch.where(alive, (low.double() / high.double()).sqrt(), 1.0).clamp(1e-4, 1e4).float()
    scale_outputs(first, 1 / scale)
    set_weight(second, scale_inputs(second, scale))
    moved *= scale
    return float(scale.log().abs().max())


def _scale_ceilings(model: nn.Module, chain: Chain, scale: Tensor) -> None:
    for name in chain.between:
        module = model.get_submodule(name)
        if isinstance(module, nn.ReLU6):
            swap_modules(model, {module: ClampedReLU(6 / scale)})
        elif isinstance(module, ClampedReLU):
            module.ceiling = module.ceiling / scale


def _bias_floors(model: nn.Module) -> dict[str, Tensor]:
    """Batch norm -> the value that its outputs hardly ever fall below: beta - 3 |gamma|."""
    return {
        name: m.bias - 3 * m.weight.abs()
        for name, m in model.named_modules()
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) and m.affine
    }


def _absorb(model: nn.Module, chain: Chain, floor: Tensor, done: Equalized) -> None:
    """Take c = max(0, floor) from the first layer's bias; the second adds `weight @ c` to its own."""
    first, second = layer(model, chain.first), layer(model, chain.second)
    padded = isinstance(second, nn.Conv2d) and second.padding not in (0, (0, 0), "valid")
    if not chain.only_relu or padded:  # behind a border of zeros the sum would be another
        return
    c = floor.clamp(min=0)
    if not c.any() or first.bias is None:
        return
    set_bias(first, first.bias - c)
    extra = scale_inputs(second, c).flatten(1).sum(1)
    set_bias(second, extra if second.bias is None else second.bias + extra)
    for name in chain.between:
        module = model.get_submodule(name)
        if isinstance(module, ClampedReLU):
            module.ceiling = (module.ceiling - c).clamp(min=0)
    done.absorbed[chain.first, chain.second] = int((c > 0).sum())
