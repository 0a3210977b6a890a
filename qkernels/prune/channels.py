"""Structured pruning: channels disappear, and with them the work of computing them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from qkernels.measuring.costs import count_parameters
from qkernels.models.channels import Sizes, changes, sizes
from qkernels.modules.copying import copied
from qkernels.modules.outputs import output_error, output_tensors, rounding
from qkernels.prune.attention import split_scores
from qkernels.prune.groups import ChannelGraph, ChannelGroup, part_of
from qkernels.prune.importance import Importance, importance
from qkernels.prune.parameters import within
from qkernels.prune.report import ChannelReport, LayerChannels
from qkernels.prune.scores import Scores
from qkernels.prune.selection import (
    LayerMacs,
    Macs,
    Order,
    Scope,
    Selector,
    amount_for,
    channel_scores,
    layer_macs,
)
from qkernels.reports import hang, report
from qkernels.utils.renamed import explains_old_arguments

PANEL = 16  # output channels that the kernels compute at once: kPanel in csrc/core/layout.h


@explains_old_arguments
def prune_channels(
    model: nn.Module,
    example_inputs: Tensor,
    scores: Scores | Importance | str,
    *,
    amount: float | None = None,
    macs: int | None = None,
    scope: Scope = "global",
    order: Order = "lowest",
    multiple: int = PANEL,
    relative: bool = True,
    ignore: Collection[str] = (),
    embeddings: bool = False,
) -> nn.Module:
    """A smaller model, in eval mode, with a `ChannelReport` as its report; `model` stays as it is.

    Channels go in groups (see `ChannelGraph`); a channel's score is the sum over all weights that go with it.

    Args:
        model: float weights.
        example_inputs: an input [N, C, H, W] or [N, K] that the model takes.
        scores: from `magnitude`, `gradient`, `taylor`, `entropy`, `dropout`, or several of one kind by `average`; an
            `importance` of torch-pruning, or the name of one that needs no data.
        amount: share of the channels to drop, in [0, 1); or
        macs: drop until at most so many multiply-adds an image are left; every layer keeps its last `multiple`.
        scope: the least scores within each group, or over all.
        order: "highest" drops what scores most; of use to see that the default is right.
        multiple: what is left of a group is rounded up to a multiple of this. The int8 kernels compute panels of 16
            output channels, and 17 to 31 of them cost what 32 do, or more (docs/pruning.md).
        relative: over all groups, divide scores by their group's mean first; network slimming does not. An importance
            of torch-pruning has a `normalizer` of its own instead.
        ignore: layers, or modules around layers, whose output channels stay.
        embeddings: also narrow the tokens of a transformer: tables, positions, class tokens, and all that adds to them,
            norms them or reads them.

    Raises:
        ValueError: for an amount outside [0, 1), an unknown layer, if a layer would be emptied, or if there is
            nothing to prune.
    """
    _check(amount, macs, multiple, scope, order)
    broken: dict[tuple[object, ...], str] = {}
    chosen = importance(scores) if isinstance(scores, str) else scores

    def attempt() -> nn.Module:
        return _pruned(
            model, example_inputs, chosen, amount, macs, scope=scope, order=order, multiple=multiple,
            relative=relative, ignore=ignore, embeddings=embeddings, broken=broken,
        )  # fmt: skip

    while True:
        try:
            return attempt()
        except DoesNotRun as error:
            found = error.breaking(model, example_inputs, embeddings)
            if not found:
                raise
            broken |= found


class DoesNotRun(ValueError):
    """A model that its forward does not let be cut as the groups say; `dropped` is what was taken out."""

    def __init__(self, message: str, dropped: Mapping[ChannelGroup, Tensor]) -> None:
        super().__init__(message)
        self.dropped = dropped

    def breaking(
        self, model: nn.Module, example_inputs: Tensor, embeddings: bool
    ) -> dict[tuple[object, ...], str]:
        """Key -> why, of each group without which alone the model does not run."""
        found = {}
        for group, positions in self.dropped.items():
            graph = ChannelGraph(model, example_inputs, embeddings=embeddings)
            (twin,) = (other for other in graph.groups if other.key == group.key)
            try:
                remove(model, graph, {twin: positions}, example_inputs)
            except DoesNotRun as error:
                found[group.key] = f"{group.name} keeps its channels: {error}"
        return found


def _pruned(
    model: nn.Module,
    example_inputs: Tensor,
    scores: Scores | Importance,
    amount: float | None,
    macs: int | None,
    *,
    scope: Scope,
    order: Order,
    multiple: int,
    relative: bool,
    ignore: Collection[str],
    embeddings: bool,
    broken: Mapping[tuple[object, ...], str],
) -> nn.Module:
    """What `prune_channels` makes, without the groups that are `broken`. Raises DoesNotRun for further ones."""
    graph = ChannelGraph(model, example_inputs, embeddings=embeddings)
    graph.notes += broken.values()
    graph.groups = [group for group in graph.groups if group.key not in broken]
    groups = _allowed(graph, ignore)
    if isinstance(scores, Importance):
        values, relative = scores.scores(graph, groups), False  # it normalizes groups its own way
    else:
        scores = split_scores(scores, graph.joined_attention)
        values = [channel_scores(group, scores) for group in groups]
    selector = Selector.of(
        groups, values, scope=scope, multiple=multiple, relative=relative, order=order
    )
    if amount is not None:
        wanted = selector.wanted(amount)
        emptied = selector.empties(wanted)
        if emptied is not None:
            raise ValueError(
                f"amount={amount} would take all {emptied.channels} channels of {emptied.name}: lower it, or prune "
                "every layer alike with scope='layer'"
            )
    else:
        assert macs is not None
        cost = Macs(layer_macs(graph.model, example_inputs), groups)
        wanted = selector.wanted(amount_for(selector, cost, macs))
    counts = selector.rounded(wanted)
    smaller = remove(model, graph, selector.dropped(counts), example_inputs)
    done = report(smaller, ChannelReport)
    done.multiple, done.held = multiple, sum(wanted) - sum(counts)
    return smaller


def _check(amount: float | None, macs: int | None, multiple: int, scope: str, order: str) -> None:
    if (amount is None) == (macs is None):
        raise ValueError("give either an amount or macs")
    if amount is not None and not 0 <= amount < 1:
        raise ValueError(f"amount={amount} must be in [0, 1)")
    if multiple < 1:
        raise ValueError(f"multiple={multiple} must be at least 1")
    if scope not in ("layer", "global"):
        raise ValueError(f"scope={scope!r} must be 'layer' or 'global'")
    if order not in ("lowest", "highest"):
        raise ValueError(f"order={order!r} must be 'lowest' or 'highest'")


def _allowed(graph: ChannelGraph, ignore: Collection[str]) -> list[ChannelGroup]:
    kinds = nn.Conv2d | nn.Linear | nn.Embedding
    layers = [name for name, module in graph.model.named_modules() if isinstance(module, kinds)]
    stay = within(layers, ignore)
    groups = [
        group
        for group in graph.groups
        if not any(m.side == "out" and m.layer in stay for m in group.members)
    ]
    if not groups:
        why = "; ".join(graph.notes[:3]) or "those of its inputs and outputs stay"
        raise ValueError(f"{type(graph.model).__name__} has no channels to prune: {why}")
    return groups


def remove(
    model: nn.Module,
    graph: ChannelGraph,
    dropped: Mapping[ChannelGroup, Tensor],
    example_inputs: Tensor,
) -> nn.Module:
    """The graph's model without the dropped channels, tried on the example, with a `ChannelReport` as its report."""
    before, old_sizes = layer_macs(graph.model, example_inputs), sizes(graph.model)
    shapes = _shapes(outputs(graph.model, example_inputs))
    silent = outputs(_silenced(graph.model, dropped), example_inputs)
    smaller, kind = graph.remove(dropped), type(model).__name__
    try:
        answers = outputs(smaller, example_inputs)
    except Exception as error:  # whatever a forward raises when its shapes no longer fit
        raise DoesNotRun(f"{kind} does not run pruned: {error}", dropped) from error
    found = _shapes(answers)
    for name, shape in shapes.items():
        if found.get(name) != shape:
            raise DoesNotRun(
                f"pruned, {kind} returns {found.get(name)}, not {shape}, as {name}", dropped
            )
    if output_error(silent, answers) > rounding({tensor.dtype for tensor in silent.values()}):
        raise DoesNotRun(
            f"pruned, {kind} answers otherwise than with those channels silent", dropped
        )
    done = describe(model, smaller, before, layer_macs(smaller, example_inputs), old_sizes)
    done.notes += graph.notes
    return hang(smaller, done)


def _silenced(model: nn.Module, dropped: Mapping[ChannelGroup, Tensor]) -> nn.Module:
    """A copy that reads nothing of the dropped channels: what the model without them has to answer.

    Layer norms in it take their statistics of the channels left.
    """
    silent = copied(model)[0].eval()
    kept: dict[nn.LayerNorm, Tensor] = {}
    with torch.no_grad():
        for group, positions in dropped.items():
            for member in group.members:
                layer = part_of(silent, member.layer)
                chosen = member.index[torch.isin(member.channel, positions)]
                if isinstance(layer, nn.LayerNorm):
                    kept.setdefault(layer, torch.ones(layer.normalized_shape, dtype=torch.bool))
                    kept[layer][chosen] = False
                elif member.side == "in" and member.dim is not None:
                    weight: Any = layer.weight
                    weight.index_fill_(member.dim, chosen.to(weight.device), 0)
    for norm, some in kept.items():
        norm.register_forward_hook(_norm_of(some))
    return silent


def _norm_of(kept: Tensor) -> Callable[..., Tensor]:
    """A hook by which a layer norm answers as one of these channels (bool) alone; the others are as they were."""

    def hook(norm: nn.LayerNorm, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        weight = None if norm.weight is None else norm.weight[kept]
        bias = None if norm.bias is None else norm.bias[kept]
        y = y.clone()
        x = args[0][..., kept]
        y[..., kept] = layer_norm(x, x.shape[-1:], weight, bias, norm.eps)
        return y

    return hook


def describe(
    model: nn.Module,
    smaller: nn.Module,
    before: Mapping[str, LayerMacs],
    after: Mapping[str, LayerMacs],
    old_sizes: Sizes,
) -> ChannelReport:
    """What became of each layer; `before` and `old_sizes` are those of `model`."""
    gone = LayerMacs("", 0, 0, 0)
    return ChannelReport(
        layers=[
            LayerChannels(
                name,
                layer.type,
                (layer.outputs, layer.inputs),
                (after.get(name, gone).outputs, after.get(name, gone).inputs),
            )
            for name, layer in before.items()
        ],
        macs=(_total(before), _total(after)),
        parameters=(count_parameters(model), count_parameters(smaller)),
        channels=changes(old_sizes, smaller),
    )


def outputs(model: nn.Module, example_inputs: Tensor) -> dict[str, Tensor]:
    """Every floating tensor of the answer of a model in eval mode, by its place in it, without a graph."""
    with torch.no_grad():
        return dict(output_tensors(model(example_inputs)))


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def _total(layers: Mapping[str, LayerMacs]) -> int:
    return sum(layer.macs for layer in layers.values())
