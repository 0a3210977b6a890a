"""Models that fit a data set, by name, and what their files keep."""

from __future__ import annotations

from typing import Any

from torch import nn

from qkernels import models
from qkernels.data import ImageData


def create_model(name: str, data: ImageData, width: int | None = None) -> nn.Module:
    """A model with fresh weights that fits the images and classes of `data`.

    Raises ValueError for an unknown name, and for a width where the model has none.
    """
    architecture = describe_architecture(name, data, width)
    try:
        return models.create(name, **architecture["kwargs"])
    except TypeError as error:
        raise ValueError(f"{name} has no width to set: leave width={width} out") from error


def describe_architecture(name: str, data: ImageData, width: int | None = None) -> dict[str, Any]:
    """What `create_model` makes, as `qkernels.save` keeps it in a file."""
    channels, height, _ = data.image_shape
    kwargs = {"num_classes": data.num_classes, "in_channels": channels, "image_size": height}
    return {"name": name, "kwargs": kwargs if width is None else {**kwargs, "width": width}}


def describe_data(data: ImageData) -> dict[str, Any]:
    """What a model's file keeps of its data as `extra`: enough to classify a picture with it."""
    return {"data": data.name, **data.image_input.as_extra()}
