"""Trained weights from a safetensors file into a model."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def load_weights(model: Model, path: str | Path) -> Model:
    """Load every parameter and buffer of `model` from a safetensors file; returns the model.

    Batch counters (`num_batches_tracked`) may be absent: published files drop them.
    Raises FileNotFoundError, or ValueError if the file is no safetensors file, if names differ,
    or if a shape differs; nothing is loaded then.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}")
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    wanted = model.state_dict()
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}
    missing = sorted(wanted.keys() - weights.keys() - counters)
    unexpected = sorted(weights.keys() - wanted.keys())
    kind = type(model).__name__
    if missing or unexpected:
        raise ValueError(
            f"{path} does not fit {kind}: {len(missing)} names missing{_first(missing)}, "
            f"{len(unexpected)} unexpected{_first(unexpected)}"
        )
    for name, tensor in weights.items():
        if tensor.shape != wanted[name].shape:
            raise ValueError(
                f"{path} does not fit {kind}: {name} is {list(tensor.shape)} in the file, "
                f"{list(wanted[name].shape)} in the model"
            )
    model.load_state_dict(weights, strict=False)
    return model


def _first(names: list[str]) -> str:
    return f" (first {names[0]})" if names else ""
