"""Trained weights of a file, whatever wrote it, into a model."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)

COMPILED = "_orig_mod."  # what torch.compile puts before the names of what it wraps
PREFIXES = ("module.", "model.", "net.", "backbone.")  # of wrappers that people train in
HOLDERS = ("state_dict", "model_state_dict", "model", "module", "weights", "ema", "state_dict_ema")
_FOREIGN = {
    b"\x89HDF": "an HDF5 file (as of Keras)",
    b"GGUF": "a GGUF file",
    b"\x93NUMPY": "a NumPy array",
}
_PICKLES = (b"PK\x03\x04", b"\x80")  # torch.save since 1.6, and before


def load_weights(model: Model, path: str | Path) -> Model:
    """Load every parameter and buffer of `model` from a file; returns the model.

    The file is one of safetensors, or of `torch.save` with a state dict in it, which is read with `weights_only`: no
    code of a file is run. Prefixes that wrappers leave ("module.", "_orig_mod.", "model.") come off where the names
    fit without. Batch counters (`num_batches_tracked`) may be absent: published files drop them.
    Raises FileNotFoundError, or ValueError if the file holds no weights, if names differ, or if a shape differs;
    nothing is loaded then.
    """
    path = Path(path).expanduser()
    wanted = model.state_dict()
    weights = _without_prefix(read_weights(path), wanted)
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


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name, on the CPU. Raises as `load_weights`, and says what a foreign file is."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name the weights file in it")
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}")
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a pointer of git-lfs and holds no weights: run git lfs pull")
    if start.lstrip()[:1] == b"<":
        raise ValueError(f"{path} is a web page and no weights file: download it again")
    foreign = _foreign(path, start)
    if foreign is not None:
        raise ValueError(f"{path} is {foreign}")
    if start.startswith(_PICKLES):
        return _pickled(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a safetensors file or is cut off, and is none of torch.save: {error}"
        ) from error


def _foreign(path: Path, start: bytes) -> str | None:
    """What a file is that no reader here reads, and what to do; None for all others."""
    if not start:
        return "empty: write or fetch it again"
    if path.suffix == ".onnx":
        return "an ONNX model and no weights file: save the state_dict() of the model that it was exported from"
    for magic, what in _FOREIGN.items():
        if start.startswith(magic):
            return f"{what} and no weights file: turn it into safetensors"
    names = zipfile.ZipFile(path).namelist() if zipfile.is_zipfile(path) else []
    if any("/code/" in name for name in names):
        return "a TorchScript program: save the state_dict() of its model, torch.jit.load(PATH).state_dict()"
    if names and all(name.endswith(".npy") for name in names):
        return "an archive of NumPy arrays: turn it into safetensors"
    return None


def plain_name(name: str) -> str:
    """A name of a state dict without what torch.compile adds to it."""
    return name.replace(COMPILED, "")


def _pickled(path: Path) -> dict[str, Tensor]:
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds pickled objects besides tensors, which could run any code and are not loaded: where you "
            "trust it, turn it once, torch.save(torch.load(PATH, weights_only=False).state_dict(), NEW)"
        ) from error
    except Exception as error:  # whatever torch says of a file that is cut off
        raise ValueError(
            f"{path} is cut off or no file of torch.save: {str(error).splitlines()[0]}"
        ) from error
    holders = [
        key for key in HOLDERS if isinstance(found, Mapping) and isinstance(found.get(key), Mapping)
    ]
    state = found[holders[0]] if holders else found
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        what = (
            ", ".join(map(str, list(state)[:5]))
            if isinstance(state, Mapping)
            else type(state).__name__
        )
        raise ValueError(f"{path} holds no state dict but {what}: save model.state_dict()")
    return dict(state)


def _without_prefix(weights: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names without prefixes, as long as all have one and none of them is a name of the model."""
    weights = {plain_name(name): tensor for name, tensor in weights.items()}
    while weights and not weights.keys() & wanted.keys():
        prefix = next((p for p in PREFIXES if all(name.startswith(p) for name in weights)), None)
        if prefix is None:
            break
        weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return weights


def _first(names: list[str]) -> str:
    return f" (first {names[0]})" if names else ""
