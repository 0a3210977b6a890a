"""Look at data before training: what is left out, how many images of which class, which cannot be read."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from qkernels.cli.options import chosen_data, takes_data
from qkernels.cli.printing import say, say_pairs
from qkernels.data.imagefolder import ImageFiles


@takes_data
def command(
    root: Annotated[
        str | None, typer.Argument(help="Folder of images, as --data imagefolder --data-root.")
    ] = None,
    **flags: Any,
) -> None:
    if root is not None:
        flags |= {"data": flags["data"] or "imagefolder", "data_root": flags["data_root"] or root}
    data = chosen_data(flags)
    splits = {name: data.split(name) for name in ("train", "val", "test")}
    say_pairs(
        {
            "inputs": " x ".join(map(str, data.image_shape)),
            "classes": ", ".join(data.class_names),
            **{name: f"{len(split):,}" for name, split in splits.items()},
        }
    )
    files = {s.images.paths: s.images for s in splits.values() if isinstance(s.images, ImageFiles)}
    faults = [fault for images in files.values() for fault in images.faults()]
    for fault in faults:
        say(fault)
    if faults:
        raise ValueError(f"{len(faults)} files cannot be read: remove or repair them")
