"""Data sets by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qkernels.data.cifar10 import load_cifar10, load_cifar10_jpeg, load_cifar10_subset
from qkernels.data.digits import load_digits
from qkernels.data.image_data import ImageData
from qkernels.data.imagefolder import load_imagefolder
from qkernels.data.own import load_own

LOADERS: dict[str, Callable[..., ImageData]] = {
    "digits": load_digits,
    "cifar10": load_cifar10,
    "cifar10-subset": load_cifar10_subset,
    "cifar10-jpeg": load_cifar10_jpeg,
    "imagefolder": load_imagefolder,
}


def available() -> tuple[str, ...]:
    """Names that `load` knows."""
    return tuple(LOADERS)


def load(name: str, root: str | Path | None = None, **options: Any) -> ImageData:
    """Load a data set by name from `root`, else `$QKERNELS_DATA`, else `~/.cache/qkernels`.

    `digits` needs no files. A name with a colon, such as `package.module:load`, is a function of one's own, see
    `qkernels.data.own.load_own`. `options` are those of the loader, such as seed and val_fraction.
    Raises ValueError for an unknown name and for an option that the loader does not have, FileNotFoundError if the
    files are not there.
    """
    if ":" in name:
        return load_own(name, root, **options)
    if name not in LOADERS:
        raise ValueError(f"no data set {name!r}; there are {', '.join(LOADERS)}")
    unknown = [
        option for option in options if option not in inspect.signature(LOADERS[name]).parameters
    ]
    if unknown:
        raise ValueError(f"{name} has no {unknown[0]} to set: its pictures are as they are")
    return LOADERS[name](root, **options)
