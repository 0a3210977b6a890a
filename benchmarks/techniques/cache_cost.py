"""What an epoch of distillation costs: without a teacher, with one, with its answers cached.

    QKERNELS_DATA=... python benchmarks/techniques/cache_cost.py

ResNet-8 taught by ResNet-20 on 2,560 images in batches of 128; epochs in turns, medians. Two minutes on an idle
core; the ratios of a busy machine mean nothing.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator

from qkernels import data as datasets
from qkernels import models
from qkernels.data.paths import data_root
from qkernels.distill import CachedTeacher, LabelObjective, Objective, TrainConfig, soft_objective
from qkernels.distill.loop import Loop
from qkernels.measuring.timing import time_in_turns
from qkernels.pipeline import create_model


def main() -> None:
    whole = datasets.load("cifar10-jpeg")
    data = dataclasses.replace(whole, train=whole.train.head(2560), val=whole.val.head(0))
    teacher = create_model("resnet20", data)
    models.load_weights(teacher, data_root() / "models/cifar10_resnet20.safetensors")
    with tempfile.TemporaryDirectory() as folder:
        for precision in ("no", "bf16"):
            config = TrainConfig(precision=precision, channels_last=True)
            cached = CachedTeacher(teacher, Path(folder) / "answers.sqlite")
            epochs = {
                "plain": epoch(data, config, LabelObjective()),
                "taught": epoch(data, config, soft_objective("hinton", config, teacher)),
                "cached": epoch(data, config, soft_objective("hinton", config, cached)),
            }
            times = time_in_turns(epochs, seconds=1, rounds=5)
            plain = times["plain"].median
            shown = ", ".join(f"{name} {t.median / plain:.2f}" for name, t in times.items())
            print(f"autocast {precision}: {shown} (plain: {plain:.2f} s)", flush=True)


def epoch(
    data: datasets.ImageData, config: TrainConfig, objective: Objective
) -> Callable[[], object]:
    """One and the same epoch: its answers are cached from the second call on."""
    torch.manual_seed(0)
    loop = Loop(create_model("resnet8", data), data, config, objective, None, Accelerator())
    return partial(loop.train_epoch, 0, lambda steps=1, note="": None)


if __name__ == "__main__":
    main()
