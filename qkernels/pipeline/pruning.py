"""A trained model made smaller: channels or blocks dropped, then trained on with the whole model as its teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from qkernels import models
from qkernels import prune as pruning
from qkernels.data import ImageData
from qkernels.distill import suitable_config
from qkernels.distill.label_loss import plain_loss
from qkernels.evaluate import Quality, evaluate
from qkernels.measuring.costs import count_macs
from qkernels.pipeline.architecture import ModelChoice, describe_data, open_float_model
from qkernels.prune.importance import NEED_DATA
from qkernels.quantization import save
from qkernels.reports import report


@dataclass(frozen=True)
class Pruned:
    """The smaller model and what it cost: multiply-adds and accuracy on test images, `before` and `after`."""

    model: nn.Module
    macs: tuple[int, int]
    before: Quality
    after: Quality
    notes: tuple[str, ...] = ()


def prune_model(
    weights: Path,
    out: Path,
    data: ImageData,
    choice: ModelChoice,
    *,
    run: Path,
    share: float,
    drop: Literal["channels", "blocks"] = "channels",
    multiple: int = pruning.PANEL,
    importance: str = "",
    embeddings: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> Pruned:
    """Drop a `share` of the multiply-adds, train on, and write a checkpoint; stopped, it goes on.

    `weights` may be a pruned checkpoint. `importance` is the name of one of torch-pruning's in place of plain
    magnitudes (`qkernels.prune.importance`), `embeddings` as in `prune_channels`; both are of channels alone.
    `settings` are those of `TrainConfig`, others suit data and model. Raises ValueError for a share outside [0, 1),
    for what blocks do not take, and as `prune_channels`, `drop_blocks` and `train`.
    """
    if not 0 <= share < 1:
        raise ValueError(
            f"--share={share} must be in [0, 1): the share of the multiply-adds to drop"
        )
    if drop == "blocks" and (importance or embeddings):
        raise ValueError("--importance and --embeddings are of channels, not of --drop blocks")
    full, architecture = open_float_model(weights, data, choice)
    full.requires_grad_(True).eval()
    example = next(iter(data.batches("train", 1)))[0]
    sample = data.batches("train", 64, shuffle=True).head(1024)
    macs = count_macs(full, data.image_shape)

    def smaller(net: nn.Module, amount: float) -> nn.Module:
        left = int((1 - amount) * macs)
        if drop == "blocks":
            losses = pruning.block_losses(
                net, pruning.find_blocks(net, example), sample, plain_loss(data.meaning)
            )
            return pruning.drop_blocks(net, example, losses, macs=left)
        return pruning.prune_channels(
            net, example, scores_of(net), macs=left, multiple=multiple, embeddings=embeddings
        )

    def scores_of(net: nn.Module) -> pruning.Scores | pruning.Importance:
        if not importance:
            return pruning.magnitude(pruning.weights(net))
        labelled = sample if importance in NEED_DATA else None
        return pruning.importance(importance, labelled, plain_loss(data.meaning))

    config = suitable_config(data, full, settings or {}, trained=True)
    tokens = ", tokens too" if embeddings else ""
    channels_by = f"channels by {importance or 'magnitude'}, multiple={multiple}{tokens}"
    chosen = "blocks by loss" if drop == "blocks" else channels_by
    net = pruning.prune_gradually(
        full, data, config, smaller,
        final=share, steps=1, run_dir=run, description=chosen, teacher=full,
    )  # fmt: skip
    channels = models.changes(models.sizes(full), net)
    kept = architecture["kwargs"].get("channels", {})
    kwargs = {**architecture["kwargs"], "channels": {**kept, **channels}}
    save(net, out, architecture={**architecture, "kwargs": kwargs}, extra=describe_data(data))
    steps = report(net, pruning.GradualReport).steps
    return Pruned(
        net,
        (macs, count_macs(net, data.image_shape)),
        evaluate(full, data),
        evaluate(net, data),
        tuple(note for step in steps for note in step.notes),
    )
