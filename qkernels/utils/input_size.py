"""The size of a model's input: as a person writes it, and as a checkpoint says it. Without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

Size = tuple[int, ...]


def parse_size(text: str) -> Size:
    """The numbers of a text such as "1,3,224,224". Raises ValueError."""
    try:
        size = tuple(int(part) for part in text.split(","))
    except ValueError:
        size = ()
    if len(size) not in (2, 3, 4) or min(size) < 1:
        raise ValueError(f"size {text!r} must be N,C,H,W, N,T,C or N,C, such as 1,3,224,224")
    return size


def image_size(path: Path, metadata: Mapping[str, Any]) -> Size:
    """[1, C, H, W] of the model of our own in the checkpoint ``path``. Raises ValueError for any other."""
    options = (metadata["architecture"] or {"kwargs": {}})["kwargs"]
    if not {"in_channels", "image_size"} <= options.keys():
        raise ValueError(f"{path} does not say its image size: give --size, such as 1,3,224,224")
    return 1, options["in_channels"], options["image_size"], options["image_size"]
