"""How much each weight or channel matters. What scores least is pruned first.

A score is a dict of tensors: by the name of a parameter, of that parameter's shape; or by the name of a layer, one
value an input channel (`entropy`, `dropout`). `Masks.of` and `prune_channels` take either where it fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from qkernels.modules.answers import logits_of
from qkernels.modules.eval_mode import eval_mode
from qkernels.prune.attention import with_split_attention
from qkernels.prune.parameters import weights
from qkernels.quantization.calibration import Calibration, calibrate
from qkernels.utils.progress import progress as progress_bar
from qkernels.utils.renamed import explains_old_arguments

Scores = dict[str, Tensor]
Labelled = Iterable[tuple[Tensor, Any]]  # batches of (inputs, labels)
Loss = Callable[[Tensor, Tensor], Tensor]  # (outputs, labels) -> the mean over the batch


@torch.no_grad()
def magnitude(parameters: Mapping[str, Tensor], p: int = 2) -> Scores:
    """|w|^p of each value: p = 1 or 2 order single weights alike, and channels by their L1 or L2 norm.

    `parameters` from `weights` or, for network slimming (Liu et al. 2017, 1708.06519), from `gammas`.
    """
    if p not in (1, 2):
        raise ValueError(f"p={p} must be 1 or 2")
    return {name: value.detach().abs().pow(p) for name, value in parameters.items()}


def gradient(
    model: nn.Module, batches: Labelled, loss: Loss = cross_entropy, **which: Any
) -> Scores:
    """|g|, g the gradient of the mean loss over all of `batches`, whatever their sizes; eval mode.

    `which`: layers and biases, as `weights` takes them. It does not see how large a weight is; `taylor` does.
    """
    found = mean_gradients(model, weights(model, **which), batches, loss)
    return {name: g.abs() for name, g in found.items()}


def taylor(model: nn.Module, batches: Labelled, loss: Loss = cross_entropy, **which: Any) -> Scores:
    """|w g|: how much the loss changes, to first order, when the weight becomes 0.

    Molchanov et al. 2017 (1611.06440), equation 6. Arguments as those of `gradient`.
    """
    parameters = weights(model, **which)
    found = mean_gradients(model, parameters, batches, loss)
    return {name: (parameters[name].detach() * g).abs() for name, g in found.items()}


@explains_old_arguments
def entropy(model: nn.Module, calibration: Calibration, *, bins: int = 64) -> Scores:
    """Entropy in bits of each input channel's mean over an image, one value a channel by layer name.

    From a histogram over all of `calibration` with `bins` steps between the least and the largest mean of the layer: a
    channel that says the same about every image scores 0. Luo, Wu 2017 (1706.05791).
    """
    if bins < 2:
        raise ValueError(f"bins={bins} must be at least 2")
    seen = _channel_means(model, calibration)
    return {name: _entropy(means, bins) for name, means in seen.items()}


def average(scores: Sequence[Scores]) -> Scores:
    """The mean over several scores of one kind, such as one for each part of the data (`split`).

    A weight that only one part of the data calls important counts accordingly less.
    """
    _same_names(scores)
    return {name: torch.stack([each[name] for each in scores]).mean(0) for name in scores[0]}


def stability(scores: Sequence[Scores], amount: float) -> Scores:
    """How many of the scores, as a share, would keep a value when the share `amount` of its tensor goes.

    Stability selection: Meinshausen, Bühlmann 2010. Among equal shares, which are many, the mean score decides.
    """
    if not 0 <= amount < 1:
        raise ValueError(f"amount={amount} must be in [0, 1)")
    mean = average(scores)
    result = {}
    for name, tie in mean.items():
        kept = torch.stack([largest(each[name], amount).to(tie) for each in scores]).mean(0)
        smaller = tie / tie.max().clamp(min=torch.finfo(tie.dtype).tiny) / 2  # than one more vote
        result[name] = kept + smaller / len(scores)
    return result


def largest(score: Tensor, amount: float) -> Tensor:
    """True for all but the share `amount` of least score, rounded down; of equal scores the first go first."""
    kept = torch.ones(score.numel(), dtype=torch.bool, device=score.device)
    order = score.flatten().argsort(stable=True)
    kept[order[: int(amount * score.numel() + 1e-6)]] = False
    return kept.view_as(score)


def split(batches: Iterable[Any], parts: int) -> list[list[Any]]:
    """The batches dealt out to `parts` lists. Raises ValueError if there are fewer batches than parts."""
    dealt = list(batches)
    if not 1 <= parts <= len(dealt):
        raise ValueError(f"{len(dealt)} batches cannot be split into parts={parts}")
    return [dealt[part::parts] for part in range(parts)]


def labelled(batches: Labelled) -> list[tuple[Tensor, Tensor]]:
    """The batches as a list; ValueError if there are none, or none with labels."""
    kept = list(batches)
    if not kept or any(labels is None for _, labels in kept):
        raise ValueError("there are no batches with labels to score on")
    return kept


def mean_gradients(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    batches: Labelled,
    loss: Loss,
    power: int = 1,
) -> dict[str, Tensor]:
    """Gradients of the mean loss over all samples; the model's own gradients and flags are not touched.

    With another `power`, the mean of that power of the gradients of batches of one sample.
    """
    frozen = {name: value.requires_grad for name, value in parameters.items()}
    sums = {name: torch.zeros_like(value) for name, value in parameters.items()}
    batches, count = labelled(batches), 0
    try:
        for value in parameters.values():
            value.requires_grad_(True)
        with eval_mode(model), progress_bar("gradients", len(batches)) as advance:
            for inputs, labels in batches:
                with torch.enable_grad():
                    total = loss(logits_of(model, inputs), labels) * len(labels)
                found = torch.autograd.grad(
                    total, list(parameters.values()), materialize_grads=True
                )
                for name, g in zip(sums, found, strict=True):
                    sums[name] += g.pow(power)
                count += len(labels)
                advance()
    finally:
        for name, value in parameters.items():
            value.requires_grad_(frozen[name])
    return {name: value / count for name, value in sums.items()}


def channel_dim(layer: nn.Module) -> int:
    """The dimension of a layer's input that its channels are: the last of a Linear's, dimension 1 of a Conv2d's."""
    return -1 if isinstance(layer, nn.Linear) else 1


class _Means:
    """Keeps each sample's mean of every channel of a layer's inputs."""

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.batches: list[Tensor] = []

    def observe(self, x: Tensor) -> None:
        x = x.movedim(self.dim, 1)
        self.batches.append(x.flatten(2).mean(2) if x.dim() > 2 else x.clone())


def _channel_means(model: nn.Module, calibration: Calibration) -> dict[str, Tensor]:
    """Layer -> [samples, input channels]; of torch's attention, the layers of its plain form."""
    model = with_split_attention(model)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    observers = {name: _Means(channel_dim(layer)) for name, layer in layers.items()}
    calibrate(model, cast(Any, observers), calibration)
    return {name: torch.cat(o.batches).cpu() for name, o in observers.items() if o.batches}


def _entropy(means: Tensor, bins: int) -> Tensor:
    """The entropy of each column, in bits."""
    low, high = means.min(), means.max()
    step = (high - low).clamp(min=torch.finfo(means.dtype).tiny) / bins
    index = ((means - low) / step).long().clamp(0, bins - 1)
    counts = means.new_zeros(means.shape[1], bins).scatter_add_(
        1, index.T, torch.ones_like(means.T)
    )
    share = counts / len(means)
    return -torch.special.xlogy(share, share).sum(1) / torch.log(means.new_tensor(2.0))


def _same_names(scores: Sequence[Scores]) -> None:
    if not scores or any(each.keys() != scores[0].keys() for each in scores):
        raise ValueError("give at least one score, and scores of the same parameters")
