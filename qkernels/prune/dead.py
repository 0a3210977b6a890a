"""Remove channels that do nothing, and change nothing by it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from qkernels.prune.channels import outputs, remove
from qkernels.prune.groups import ChannelGraph, ChannelGroup
from qkernels.quantization.fold import fold_batch_norm_
from qkernels.utils.renamed import explains_old_arguments


@explains_old_arguments
def remove_dead_channels(model: nn.Module, example_inputs: Tensor) -> nn.Module:
    """The same function with fewer channels: those that are always 0, and those that nothing reads, are gone.

    Read from the weights, not from data: a channel is 0 where every layer that makes it has weights, bias and batch
    norm that give 0, and unread where every weight that reads it is 0. One channel of a group always stays. Outputs
    are equal but for the order of float additions; that is checked on `example_inputs`, which the activations in
    between must keep 0 for (a sigmoid does not).

    Its report is a `ChannelReport`.

    Raises ValueError if the outputs on `example_inputs` differ by more than 1e-4 of their largest value.
    """
    graph = ChannelGraph(model, example_inputs)
    folded = copy.deepcopy(graph.model)
    fold_batch_norm_(folded, example_inputs)
    dropped = {group: dead for group in graph.groups if len(dead := _dead(folded, group))}
    expected = outputs(graph.model, example_inputs)
    smaller = remove(model, graph, dropped, example_inputs)
    found = outputs(smaller, example_inputs)
    for name, tensor in expected.items():
        error = (found[name] - tensor).abs().max()
        if error > 1e-4 * tensor.abs().max():
            raise ValueError(
                f"without its dead channels {type(model).__name__} answers differently by {error:.2g}: an activation "
                "makes something else of their 0"
            )
    return smaller


def _dead(folded: nn.Module, group: ChannelGroup) -> Tensor:
    """Positions of the group's channels that are 0 or unread; never all of them."""
    zero, unread = torch.ones(2, group.channels, dtype=torch.bool)
    for member in group.members:
        layer = folded.get_submodule(member.layer)
        state, side = (
            (unread, _ignores(layer)) if member.side == "in" else (zero, _gives_zero(layer))
        )
        if side is not None:
            state[member.channel[~side[member.index]]] = False
    if not any(member.side == "in" for member in group.members):
        unread[:] = False
    positions = (zero | unread).nonzero().flatten()
    return positions[1:] if len(positions) == group.channels else positions


def _gives_zero(layer: nn.Module) -> Tensor | None:
    """Whether each output channel is 0: always, or for layers of one channel each where their input is."""
    if isinstance(layer, nn.Conv2d | nn.Linear):
        depthwise = isinstance(layer, nn.Conv2d) and layer.groups == layer.out_channels > 1
        zero = (layer.weight == 0).flatten(1).all(1) | depthwise
        return zero if layer.bias is None else zero & (layer.bias == 0)
    if isinstance(layer, _BatchNorm):  # one that could not be folded: what it makes of 0
        assert layer.running_mean is not None and layer.running_var is not None
        scaled = layer.running_mean / (layer.running_var + layer.eps).sqrt()
        return scaled == 0 if not layer.affine else layer.bias == scaled * layer.weight
    return None


def _ignores(layer: nn.Module) -> Tensor | None:
    """Whether every weight that reads it is 0, for each input channel."""
    if isinstance(layer, nn.Conv2d | nn.Linear):
        return (layer.weight == 0).transpose(0, 1).flatten(1).all(1)
    return None
