"""The model that a file holds, for commands that take float weights or a checkpoint of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

import qkernels
from qkernels import models
from qkernels.data import ImageData
from qkernels.pipeline import create_model, describe_architecture
from qkernels.quantization import CheckpointError, read_metadata


def open_model(
    path: Path, images: ImageData, model: str | None, width: int | None
) -> tuple[nn.Module, dict[str, Any]]:
    """(model, architecture). A checkpoint rebuilds itself; float weights need the name of their model."""
    try:
        architecture = read_metadata(path)["architecture"]
    except CheckpointError as error:
        if model is None:
            raise ValueError(f"{error} (if these are float weights, name their --model)") from error
        net = models.load_weights(create_model(model, images, width), path)
        return net, describe_architecture(model, images, width)
    if model is not None or width is not None:
        flag = "--model" if model is not None else "--width"
        raise ValueError(f"{path} names its model itself: leave {flag} out")
    return qkernels.load(path), architecture
