"""Channels that the model can do without, found by doing without them: dropout as a measure of importance."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from qkernels.modules.answers import logits_of
from qkernels.modules.calling import Call
from qkernels.modules.eval_mode import answering
from qkernels.modules.watching import watching
from qkernels.prune.attention import with_split_attention
from qkernels.prune.scores import Labelled, Loss, Scores, channel_dim, labelled
from qkernels.utils.progress import progress as progress_bar


def dropout(
    model: nn.Module,
    batches: Labelled,
    loss: Loss = cross_entropy,
    *,
    parts: int = 10,
    seed: int = 0,
) -> Scores:
    """How much larger the loss is with an input channel dropped than with it kept, by layer name, at least 0.

    Every batch runs `parts` times, each time without another random part of every layer's input channels, so that each
    channel is dropped once a batch; its score is the difference of the mean losses. Small scores are mostly noise: more
    batches, less of it. Seeded; `model` is not changed.

    Raises ValueError for fewer than 2 parts and if there are no batches.
    """
    if parts < 2:
        raise ValueError(f"parts={parts} must be at least 2")
    batches, model = labelled(batches), with_split_attention(model)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    # by layer: [2, channels], summed losses with the channel dropped and kept
    sums: dict[str, Tensor] = {}
    part_of: dict[str, Tensor] = {}  # by layer: the pass that drops a channel
    with ExitStack() as stack:
        turn = _Turn(layers, torch.Generator().manual_seed(seed), parts, part_of)
        stack.enter_context(watching(layers, turn.drop))
        stack.enter_context(answering(model))
        advance = stack.enter_context(progress_bar("dropout", parts * len(batches)))
        for inputs, labels in batches:
            part_of.clear()
            for turn.now in range(parts):
                value = float(loss(logits_of(model, inputs), labels)) * len(labels)
                for name, part in part_of.items():
                    dropped = torch.stack([part == turn.now, part != turn.now]).double()
                    sums[name] = sums.get(name, 0) + dropped * value
                advance()
    count = sum(len(labels) for _, labels in batches)
    each = torch.tensor([1, parts - 1]).view(2, 1) * count
    means = {name: total / each for name, total in sums.items()}
    return {name: (mean[0] - mean[1]).clamp(min=0).float() for name, mean in means.items()}


class _Turn:
    """Drops the channels whose part it is `now`; deals them to parts when a layer is first seen in a batch."""

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        generator: torch.Generator,
        parts: int,
        part_of: dict[str, Tensor],
    ) -> None:
        self.layers, self.generator, self.parts = layers, generator, parts
        self.part_of, self.now = part_of, 0

    def drop(self, name: str, call: Call) -> Call:
        """The call of a layer without the channels of this turn."""
        dim = channel_dim(self.layers[name])
        x = call.first.movedim(dim, -1)
        if name not in self.part_of:
            order = torch.randperm(x.shape[-1], generator=self.generator)
            self.part_of[name] = order % self.parts
        kept = self.part_of[name] != self.now
        return Call(((x * kept.to(x)).movedim(-1, dim),))
