"""Settings of a training that suit its data, its model and where it starts; every field can be given instead."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from qkernels.data.image_data import ImageData
from qkernels.distill.config import TrainConfig
from qkernels.distill.registry import suitable_soft_loss

STEPS = 1200  # that a training from scratch takes at least
STEPS_AN_EPOCH = 16  # at least, so that a small set has some
MANY_IMAGES = (
    10_000  # from which on the published recipe of convolutional networks is the better one
)


def suitable_batch(images: int) -> int:
    """The size of a batch that suits so many training images: a power of two, which processes can share."""
    return 2 ** int(math.log2(max(8, min(128, images / STEPS_AN_EPOCH))))


def suitable_config(
    data: ImageData, model: nn.Module, given: Mapping[str, Any], *, trained: bool = False
) -> TrainConfig:
    """The settings of `train` for `model` on `data`, with those `given` in place of their own.

    Small sets get smaller batches and more epochs. Networks with layer norms, and all on few images, are trained by
    AdamW, others by SGD. A `trained` model starts at a tenth of the rate and takes a third of the epochs. The best
    weights are kept, the start's included. pydantic raises ValidationError (a ValueError) naming a field at fault.
    """
    count = max(1, len(data.train))
    batch = given.get("batch_size") or suitable_batch(count)
    epochs = min(60, max(20, math.ceil(STEPS / max(1, count // batch))))
    epochs = given.get("epochs") or (max(10, epochs // 3) if trained else epochs)
    norms = any(isinstance(module, nn.LayerNorm) for module in model.modules())
    sgd = count >= MANY_IMAGES and not norms
    lr = 0.1 if sgd else 0.001 if norms else 0.003
    settings = {
        "epochs": epochs,
        "batch_size": batch,
        "optimizer": "sgd" if sgd else "adamw",
        "lr": lr / 10 if trained else lr,
        "warmup_epochs": 1 if epochs > 4 and not trained else 0,
        "keep": "best",
        "loss": suitable_soft_loss(data.meaning.task),
    }
    if "optimizer" in given and given["optimizer"] != settings["optimizer"] and "lr" not in given:
        settings["lr"] = (0.1 if given["optimizer"] == "sgd" else 0.003) / (10 if trained else 1)
    return TrainConfig.model_validate(settings | dict(given))
