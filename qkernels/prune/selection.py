"""Which channels go: by their scores, within a layer or over all of them, down to a number of multiply-adds."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from qkernels.modules.calling import Call
from qkernels.modules.watching import watching
from qkernels.prune.cells import Side
from qkernels.prune.groups import ChannelGroup, Member
from qkernels.prune.scores import Scores

Scope = Literal["layer", "global"]
Order = Literal["lowest", "highest"]

Layer = nn.Conv2d | nn.ConvTranspose2d | nn.Linear  # whose multiply-adds are counted

_ROUNDING = 1e-6  # so that 0.29 of 100 channels are 29


def channel_scores(group: ChannelGroup, scores: Scores) -> Tensor:
    """One value a channel: the sum of the scores of all weights that would go with it, inputs of the next layers too.

    Raises ValueError if `scores` has nothing about the group.
    """
    total, seen = torch.zeros(group.channels, dtype=torch.float32), False
    for member in group.members:
        for entries in _entry_scores(member, scores):
            total.index_add_(0, member.channel, entries.float().cpu()[member.index])
            seen = True
    if not seen:
        raise ValueError(f"the scores say nothing about {group.name}: leave it out by ignore=")
    return total


def _entry_scores(member: Member, scores: Scores) -> Iterator[Tensor]:
    """What `scores` holds about a side of a layer, one value an entry of that side."""
    weight = scores.get(f"{member.layer}.weight")
    if weight is not None and member.dim is not None:
        sides = weight.transpose(0, member.dim)
        yield sides.reshape(len(sides), -1).sum(1)
    if member.side == "in" and member.layer in scores:
        yield scores[member.layer]


@dataclass(frozen=True)
class Selector:
    """Turns an amount into counts a group. `ranked` are the channels of each group, those that go first in front."""

    groups: Sequence[ChannelGroup]
    ranked: Sequence[Tensor]
    turns: Tensor  # the group of each channel, over all groups in the order in which they would go
    scope: Scope
    multiple: int

    @classmethod
    def of(
        cls,
        groups: Sequence[ChannelGroup],
        scores: Sequence[Tensor],
        *,
        scope: Scope,
        multiple: int,
        relative: bool,
        order: Order,
    ) -> Selector:
        last = order == "highest"
        ranked = [score.argsort(stable=True, descending=last) for score in scores]
        scaled = [s / s.mean().clamp(min=1e-30) if relative else s for s in scores]
        owner = torch.cat([torch.full_like(r, at) for at, r in enumerate(ranked)])
        turns = owner[torch.cat(scaled).argsort(stable=True, descending=last)]
        return cls(groups, ranked, turns, scope, multiple)

    def wanted(self, amount: float) -> list[int]:
        """Channels to drop from each group, before rounding."""
        if self.scope == "layer":
            return [int(amount * group.channels + _ROUNDING) for group in self.groups]
        first = self.turns[: int(amount * len(self.turns) + _ROUNDING)]
        return torch.bincount(first, minlength=len(self.groups)).tolist()

    def rounded(self, wanted: Sequence[int]) -> list[int]:
        """The same with what is left, at least 1, rounded up: the channels that fill a multiple cost nothing."""
        left = [max(1, g.channels - w) for g, w in zip(self.groups, wanted, strict=True)]
        # A head or group of several channels fills panels by itself: fewer of them make a multiple.
        steps = [self.multiple // math.gcd(self.multiple, group.width) for group in self.groups]
        up = [-(-count // step) * step for count, step in zip(left, steps, strict=True)]
        return [max(0, g.channels - count) for g, count in zip(self.groups, up, strict=True)]

    def dropped(self, counts: Sequence[int]) -> dict[ChannelGroup, Tensor]:
        return {
            group: order[:count]
            for group, order, count in zip(self.groups, self.ranked, counts, strict=True)
            if count
        }

    def empties(self, counts: Sequence[int]) -> ChannelGroup | None:
        """The first group of which nothing would be left."""
        pairs = zip(self.groups, counts, strict=True)
        return next((group for group, count in pairs if count >= group.channels), None)


@dataclass(frozen=True)
class LayerMacs:
    """A layer's class, its multiply-adds for one image, its output channels, and the inputs that each of them reads.

    Of a layer with `groups`, the inputs of one group: they stay as many when others go.
    """

    type: str
    macs: int
    outputs: int
    inputs: int
    groups: bool = False


def layer_macs(model: nn.Module, example_inputs: Tensor) -> dict[str, LayerMacs]:
    """What every convolution of images and every Linear of a model in eval mode computes."""
    found: dict[str, LayerMacs] = {}

    layers = {n: m for n, m in model.named_modules() if isinstance(m, Layer)}

    def count(name: str, call: Call, y: Tensor) -> None:
        layer = layers[name]
        outputs, inputs = layer.weight.shape[:2]
        groups = not isinstance(layer, nn.Linear) and layer.groups > 1
        moved = y
        if isinstance(layer, nn.ConvTranspose2d):
            outputs, inputs = layer.out_channels, layer.in_channels // layer.groups
            moved = call.first
        macs = moved[0].numel() * layer.weight[0].numel()
        found[name] = LayerMacs(type(layer).__name__, macs, outputs, inputs, groups)

    with watching(layers, after=count), torch.no_grad():
        model(example_inputs)
    return found


class Macs:
    """Multiply-adds of one image as a function of the channels dropped from each group."""

    def __init__(self, layers: Mapping[str, LayerMacs], groups: Sequence[ChannelGroup]) -> None:
        self.layers = layers
        self._cuts: dict[str, list[tuple[int, Side, float]]] = defaultdict(list)
        for at, group in enumerate(groups):
            for member in group.members:
                if member.side == "in" and member.layer in layers and layers[member.layer].groups:
                    continue
                entries = len(member.index) / group.channels  # 1, or more behind a flatten
                self._cuts[member.layer].append((at, member.side, entries))

    def __call__(self, counts: Sequence[int]) -> int:
        total = 0.0
        for name, layer in self.layers.items():
            left: dict[Side, float] = {"out": layer.outputs, "in": layer.inputs}
            for at, side, entries in self._cuts[name]:
                left[side] -= counts[at] * entries
            total += layer.macs * (left["out"] / layer.outputs) * (left["in"] / layer.inputs)
        return round(total)


def amount_for(selector: Selector, macs: Macs, target: int) -> float:
    """The least amount that leaves at most `target` multiply-adds, rounding included; ValueError if none does."""
    steps = len(selector.turns)

    def left(step: int) -> int:
        return macs(selector.rounded(selector.wanted(step / steps)))

    if left(steps) > target:
        raise ValueError(
            f"macs={target:,} cannot be reached: {left(steps):,} are left when every layer keeps its last "
            f"{selector.multiple} channels"
        )
    low, high = 0, steps
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if left(middle) <= target else (middle + 1, high)
    return low / steps
