"""The places of data sets and of decoded copies."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Folder for files this package makes: `$QKERNELS_CACHE`, else `~/.cache/qkernels`."""
    return Path(os.environ.get("QKERNELS_CACHE") or "~/.cache/qkernels").expanduser()


def data_root(root: str | Path | None = None) -> Path:
    """Folder of the data sets: `root`, else `$QKERNELS_DATA`, else the cache folder."""
    return Path(root or os.environ.get("QKERNELS_DATA") or cache_dir()).expanduser()


def find(names: tuple[str, ...], root: str | Path | None = None) -> Path | None:
    """First of `names` that exists under the data root, itself or below `cifar10`.

    The root may be the folder that holds the name, or have it in `cifar10/`, `data/` or
    `data/cifar10/`. Returns None when nothing is there.
    """
    base = data_root(root)
    for name in names:
        for folder in ("", "cifar10", "data", "data/cifar10"):
            if (base / folder / name).exists():
                return base / folder / name
    return None


def find_or_raise(names: tuple[str, ...], root: str | Path | None, advice: str = "") -> Path:
    """What `find` finds; else a FileNotFoundError names what was looked for, where, and what to do."""
    found = find(names, root)
    if found is None:
        raise FileNotFoundError(
            f"no {' or '.join(names)} under {data_root(root)}: put it there, "
            f"or name another folder with root= or QKERNELS_DATA{advice}"
        )
    return found
