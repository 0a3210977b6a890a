"""Whole blocks disappear, and with them the calls of their layers, where networks for small images spend their time."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from qkernels.models.channels import sizes
from qkernels.modules.answers import logits_of
from qkernels.modules.calling import Call
from qkernels.modules.eval_mode import answering
from qkernels.modules.watching import watching
from qkernels.prune.channels import describe
from qkernels.prune.parameters import within
from qkernels.prune.scores import Labelled, Loss, labelled
from qkernels.prune.selection import layer_macs
from qkernels.reports import hang
from qkernels.utils.progress import progress as progress_bar
from qkernels.utils.renamed import explains_old_arguments


@explains_old_arguments
def find_blocks(model: nn.Module, example_inputs: Tensor) -> list[str]:
    """What an Identity could replace: elements of an nn.Sequential that hold layers and keep their input's shape.

    The outermost of those that lie in each other; `block_losses` says which of them matter.
    """
    found: list[str] = []

    def keep(name: str, call: Call, y: object) -> None:
        if len(call.args) == 1 and isinstance(y, Tensor) and y.shape == call.first.shape:
            found.append(name)

    blocks = {
        f"{name}.{key}".lstrip("."): block
        for name, sequence in model.named_modules()
        if isinstance(sequence, nn.Sequential)
        for key, block in sequence.named_children()
        if any(True for _ in block.children())
    }
    with watching(blocks, after=keep), answering(model):
        model(example_inputs)
    return [name for name in found if not any(name.startswith(f"{outer}.") for outer in found)]


def block_losses(
    model: nn.Module, blocks: Iterable[str], batches: Labelled, loss: Loss = cross_entropy
) -> dict[str, float]:
    """Mean loss of the model without each block, by block name; without fine-tuning.

    That residual networks survive this, and which blocks matter: Veit et al. 2016 (1605.06431).
    """
    batches, names, losses = labelled(batches), list(blocks), {}
    model = copy.deepcopy(model)
    with progress_bar("blocks", len(names)) as advance, answering(model):
        for name in names:
            block = model.get_submodule(name)
            model.set_submodule(name, nn.Identity())
            total = sum(
                float(loss(logits_of(model, x), labels)) * len(labels) for x, labels in batches
            )
            model.set_submodule(name, block)
            losses[name] = total / sum(len(labels) for _, labels in batches)
            advance(1, name)
    return losses


@explains_old_arguments
def drop_blocks(
    model: nn.Module, example_inputs: Tensor, losses: dict[str, float], *, macs: int
) -> nn.Module:
    """A model in eval mode without the blocks of least `losses`, as many as it takes to leave at most `macs`.

    Its report is a `ChannelReport`.

    Args:
        model: stays as it is.
        example_inputs: an input [N, C, H, W] that the model takes.
        losses: from `block_losses`; blocks that are not in it stay.
        macs: multiply-adds of one image.

    Raises ValueError for an unknown block (naming the nearest), or if not even dropping all of them is enough.
    """
    within([name for name, _ in model.named_modules()], losses)
    smaller, old_sizes = copy.deepcopy(model).eval(), sizes(model)
    before = after = layer_macs(smaller, example_inputs)
    for name in sorted(losses, key=lambda name: losses[name]):
        if sum(layer.macs for layer in after.values()) <= macs:
            break
        smaller.set_submodule(name, nn.Identity())
        after = layer_macs(smaller, example_inputs)
    report = describe(model, smaller, before, after, old_sizes)
    if report.macs[1] > macs:
        raise ValueError(
            f"macs={macs:,} cannot be reached: {report.macs[1]:,} are left without all {len(losses)} blocks"
        )
    return hang(smaller, report)
