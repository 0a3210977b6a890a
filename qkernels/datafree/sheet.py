"""A picture of many images, to see whether they are any good."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn.functional import pad

from qkernels.data import Split
from qkernels.utils.extras import require


def write_sheet(split: Split, path: str | Path, *, columns: int = 10, rows: int = 10) -> None:
    """The first `columns` * `rows` images as one PNG, row by row; small ones are enlarged, pixel by pixel.

    Three channels are red, green and blue; of any other number the first is drawn in grey.
    """
    index = torch.arange(min(columns * rows, len(split)))
    images = pad(split.images[index], (1, 1, 1, 1))
    blank = images.new_zeros(-len(images) % columns, *images.shape[1:])
    lines = torch.cat([images, blank]).unflatten(0, (-1, columns))
    grid = lines.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    array = grid.numpy() if grid.shape[2] == 3 else grid[:, :, 0].contiguous().numpy()
    picture = require("PIL.Image").fromarray(array)
    factor = max(1, 640 // picture.width)
    picture.resize((factor * picture.width, factor * picture.height), 0).save(path)
