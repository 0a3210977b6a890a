"""Drop channels or blocks, then train on with the unpruned model as the teacher; stopped, it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from torch import nn

import qkernels
from qkernels import data as datasets
from qkernels import models
from qkernels import prune as pruning
from qkernels.cli.options import Data, Root, Width
from qkernels.cli.printing import check_writable, kilobytes, say
from qkernels.distill import TrainConfig
from qkernels.evaluate import evaluate as evaluate_model
from qkernels.measure import count_macs
from qkernels.pipeline import create_model, describe_architecture


def command(
    weights: Annotated[Path, typer.Argument(help="safetensors file of the float model.")],
    out: Annotated[Path, typer.Argument(help="float checkpoint to write, for quantize.")],
    model: Annotated[str, typer.Option(help="Which model the weights are of.")],
    run: Annotated[Path, typer.Option(help="Folder of the run.")],
    width: Width = None,
    data: Data = "digits",
    data_root: Root = None,
    drop: Annotated[
        Literal["channels", "blocks"], typer.Option(help="What goes: blocks save calls as well.")
    ] = "channels",
    share: Annotated[float, typer.Option(help="Share of the multiply-adds to drop.")] = 0.4,
    multiple: Annotated[
        int, typer.Option(help="Channels left are multiples of this.", min=1)
    ] = pruning.PANEL,
    epochs: Annotated[int, typer.Option(help="Epochs of training afterwards.")] = 10,
    lr: Annotated[float, typer.Option(help="Its learning rate.")] = 0.05,
) -> None:
    check_writable(out)
    dataset = datasets.load(data, data_root)
    full = models.load_weights(create_model(model, dataset, width), weights).eval()
    example = torch.zeros(1, *dataset.image_shape)
    sample = dataset.batches("train", 64, shuffle=True).head(1024)
    macs = count_macs(full, dataset.image_shape)

    def smaller(net: nn.Module, amount: float) -> nn.Module:
        left = int((1 - amount) * macs)
        if drop == "blocks":
            losses = pruning.block_losses(net, pruning.find_blocks(net, example), sample)
            return pruning.drop_blocks(net, example, losses, macs=left)
        scores = pruning.magnitude(pruning.weights(net))
        return pruning.prune_channels(net, example, scores, macs=left, multiple=multiple)

    config = TrainConfig.model_validate({"epochs": epochs, "lr": lr})
    chosen = "blocks by loss" if drop == "blocks" else f"channels by magnitude, multiple={multiple}"
    net = pruning.prune_gradually(
        full, dataset, config, smaller,
        final=share, steps=1, run_dir=run, description=chosen, teacher=full,
    )  # fmt: skip
    architecture = describe_architecture(model, dataset, width)
    architecture["kwargs"]["channels"] = models.changes(models.sizes(full), net)
    qkernels.save(net, out, architecture=architecture)
    say(f"multiply-adds {macs:,} -> {count_macs(net, dataset.image_shape):,}")
    say(f"test accuracy {evaluate_model(net, dataset)}, before {evaluate_model(full, dataset)}")
    say(f"wrote {out}: {kilobytes(out)}, before {kilobytes(weights)}")
