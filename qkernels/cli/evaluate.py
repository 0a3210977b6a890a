"""Accuracy with its 95 % interval, size and latency of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from qkernels.cli.options import chosen_data, chosen_model, takes_data, takes_model
from qkernels.cli.printing import kilobytes, say_pairs
from qkernels.evaluate import evaluate
from qkernels.measure import measure_speed
from qkernels.pipeline import open_model


@takes_model
@takes_data
def command(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or float weights.")],
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Which images.")] = "test",
    **flags: Any,
) -> None:
    images = chosen_data(flags)
    net, _ = open_model(checkpoint, images, chosen_model(flags))
    accuracy = evaluate(net, images, split, progress=True)
    speed = measure_speed({"": net}, images.image_shape, progress=True)[""]
    say_pairs(
        {
            "accuracy": f"{accuracy} {split} images",
            "size": kilobytes(checkpoint),
            "one image": f"p50 {speed.p50_ms:.3g} ms, p95 {speed.p95_ms:.3g} ms",
            f"batches of {speed.batch}": f"{speed.images_per_second:,.0f} images/s",
        }
    )
