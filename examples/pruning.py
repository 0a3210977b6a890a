"""Prune a trained network by blocks and by channels, win the accuracy back, and see what it bought.

    python examples/pruning.py

Handwritten digits, offline, a minute or two on one core. What was trained stays in runs/example-pruning.
"""

from __future__ import annotations

from pathlib import Path

import torch

import qkernels
from qkernels import data as datasets
from qkernels import models, prune
from qkernels.distill import TrainConfig, train
from qkernels.evaluate import evaluate
from qkernels.measuring.costs import count_macs
from qkernels.pipeline import calibration_batches

RUN = Path("runs/example-pruning")
KWARGS = {"in_channels": 1, "width": 32}


def main() -> None:
    torch.manual_seed(0)
    digits = datasets.load("digits")
    whole = models.create("resnet14", **KWARGS)
    train(whole, digits, TrainConfig(epochs=4, batch_size=64), run_dir=RUN / "whole")
    whole.eval()

    example = torch.zeros(1, *digits.image_shape)
    macs = count_macs(whole, digits.image_shape)
    sample = digits.batches("train", 64).head(512)
    losses = prune.block_losses(whole, prune.find_blocks(whole, example), sample)
    fewer = prune.drop_blocks(whole, example, losses, macs=int(0.8 * macs))
    scores = prune.taylor(fewer, sample)
    smaller = prune.prune_channels(fewer, example, scores, macs=int(0.5 * macs))
    report = qkernels.report(smaller)
    config = TrainConfig(epochs=2, batch_size=64, lr=0.05)
    train(smaller, digits, config, teacher=whole, run_dir=RUN / "pruned")
    smaller.eval()

    calibration = list(calibration_batches(digits, 256, seed=0))
    report.speed = prune.compare_speed(whole, smaller, calibration, digits.image_shape)
    print(report)
    print(f"before   {evaluate(whole, digits)}, {macs:,} multiply-adds")
    print(f"pruned   {evaluate(smaller, digits)}, {report.macs[1]:,}")

    int8 = qkernels.quantize(smaller, calibration=calibration)
    channels = models.changes(models.sizes(whole), smaller)  # of both prunings
    architecture = {"name": "resnet14", "kwargs": {**KWARGS, "channels": channels}}
    qkernels.save(int8, RUN / "int8.safetensors", architecture=architecture)
    print(f"int8     {evaluate(qkernels.load(RUN / 'int8.safetensors'), digits)}")


if __name__ == "__main__":
    main()
