"""Accuracy with its 95 % interval, size and latency of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from qkernels import data as datasets
from qkernels.cli.opening import open_model
from qkernels.cli.options import Data, Root, Width
from qkernels.cli.printing import kilobytes, say_pairs
from qkernels.evaluate import evaluate as evaluate_model
from qkernels.measure import measure_speed


def command(
    checkpoint: Annotated[Path, typer.Argument(help="An int8 checkpoint, or float weights.")],
    model: Annotated[str | None, typer.Option(help="Which model float weights are of.")] = None,
    width: Width = None,
    data: Data = "digits",
    data_root: Root = None,
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Which images.")] = "test",
) -> None:
    images = datasets.load(data, data_root)
    net, _ = open_model(checkpoint, images, model, width)
    accuracy = evaluate_model(net, images, split, progress=True)
    speed = measure_speed({"": net}, images.image_shape, progress=True)[""]
    say_pairs(
        {
            "accuracy": f"{accuracy} {split} images",
            "size": kilobytes(checkpoint),
            "one image": f"p50 {speed.p50_ms:.3g} ms, p95 {speed.p95_ms:.3g} ms",
            f"batches of {speed.batch}": f"{speed.images_per_second:,.0f} images/s",
        }
    )
