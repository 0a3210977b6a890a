"""Data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qkernels.data.cifar10 import load_cifar10, load_cifar10_jpeg, load_cifar10_subset
from qkernels.data.digits import load_digits
from qkernels.data.image_data import ImageData
from qkernels.data.imagefolder import load_imagefolder

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

    `digits` needs no files. `options` are those of the loader, such as seed and val_fraction.
    Raises ValueError for an unknown name and FileNotFoundError if the files are not there.
    """
    if name not in LOADERS:
        raise ValueError(f"no data set {name!r}; there are {', '.join(LOADERS)}")
    return LOADERS[name](root, **options)
