"""Models that fit a data set, by name or out of a file, and what their files keep."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from qkernels import models
from qkernels.data import ImageData
from qkernels.nn import QuantModule
from qkernels.quantization import CheckpointError, load, read_metadata


@dataclass(frozen=True)
class ModelChoice:
    """Which model is meant: a name of the registry or an import path (see `qkernels.models.sources`), and arguments.

    Attributes:
        name: None where a file names its model itself.
        args: arguments as JSON text, such as '{"width": 64}'.
        width: short for the argument of that name.
        trust: build what a file names also where its code lies outside the installed packages.
    """

    name: str | None = None
    args: str = ""
    width: int | None = None
    trust: bool = False

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments given; ValueError if the text is no JSON object."""
        try:
            found = json.loads(self.args or "{}")
        except ValueError as error:
            raise ValueError(f"model arguments {self.args!r} are no JSON: {error}") from error
        if not isinstance(found, dict):
            raise ValueError(f"model arguments {self.args!r} must be a JSON object")
        return found if self.width is None else {**found, "width": self.width}


def create_model(
    name: str, data: ImageData, width: int | None = None, args: Mapping[str, Any] | None = None
) -> nn.Module:
    """A model with fresh weights that fits the images and classes of `data`.

    Raises ValueError for an unknown name and for arguments that the model does not have, ImportError for a library or
    module that is not there.
    """
    architecture = describe_architecture(name, data, width, args)
    try:
        return models.create(name, **architecture["kwargs"])
    except TypeError as error:
        given = {**(args or {}), **({} if width is None else {"width": width})}
        if given.keys() == {"width"} and "'width'" in str(error):
            raise ValueError(f"{name} has no width to set: leave it out") from error
        raise ValueError(f"{name} does not take {given}: {error}") from error


def describe_architecture(
    name: str, data: ImageData, width: int | None = None, args: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What `create_model` makes, as `qkernels.save` keeps it in a file: never code, only its name and arguments."""
    shape: tuple[int, ...] = data.image_shape
    kwargs = {"num_classes": data.num_classes, "in_channels": shape[0]}
    if len(shape) > 1:
        kwargs["image_size"] = shape[1]
    if models.is_named_by_source(name):
        kwargs = models.accepted(name, kwargs)
    given = dict(args or {}) if width is None else {**(args or {}), "width": width}
    return {"name": name, "kwargs": {**kwargs, **given}}


def open_model(
    path: Path, data: ImageData, choice: ModelChoice
) -> tuple[nn.Module, dict[str, Any]]:
    """(model, architecture). A checkpoint of ours rebuilds itself; weights of other files need the name of their model.

    Raises ValueError where the name is missing or given twice, and as `qkernels.load` and `models.load_weights`.
    """
    try:
        architecture: dict[str, Any] | None = read_metadata(path)["architecture"]
    except CheckpointError as error:
        if choice.name is None:
            raise ValueError(f"{error} (if these are float weights, name their --model)") from error
        net = create_model(choice.name, data, None, choice.arguments)
        return models.load_weights(net, path), describe_architecture(
            choice.name, data, None, choice.arguments
        )
    given = {"--model": choice.name, "--width": choice.width, "--model-args": choice.args or None}
    if architecture is not None:
        for flag, value in given.items():
            if value is not None:
                raise ValueError(f"{path} names its model itself: leave {flag} out")
        return load(path, trust=choice.trust), architecture
    if choice.name is None:
        raise ValueError(f"{path} does not say which model it is of: name its --model")
    fresh = create_model(choice.name, data, None, choice.arguments)
    return load(path, fresh), describe_architecture(choice.name, data, None, choice.arguments)


def names_its_model(path: Path) -> bool:
    """Whether a file is a checkpoint of ours that says which model it is of."""
    try:
        return read_metadata(path)["architecture"] is not None
    except CheckpointError:
        return False


def open_float_model(
    path: Path, data: ImageData, choice: ModelChoice
) -> tuple[nn.Module, dict[str, Any]]:
    """The model of weights that can be trained, pruned and quantized, by `open_model`. ValueError: it is int8."""
    net, architecture = open_model(path, data, choice)
    if any(isinstance(module, QuantModule) for module in net.modules()):
        raise ValueError(f"{path} is int8 already: give the float weights that it was made of")
    return net, architecture


def describe_data(data: ImageData) -> dict[str, Any]:
    """What a model's file keeps of its data as `extra`: enough to classify a picture with it, if they are pictures."""
    shown = data.image_input
    return {"data": data.name, **({} if shown is None else shown.as_extra())}
