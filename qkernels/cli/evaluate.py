"""Accuracy with its 95 % interval, size and latency of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from qkernels.cli.options import chosen_data, chosen_model, takes_data, takes_model
from qkernels.cli.printing import kilobytes, say, say_pairs
from qkernels.evaluate import evaluate
from qkernels.measuring.speed import MEANING, measure_speed
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
    quality = evaluate(net, images, split, progress=True)
    speeds = measure_speed({"": net}, images.image_shape, progress=True)[""]
    say_pairs({quality.metric: f"{quality} {split} images", "size": kilobytes(checkpoint)})
    table = Table("runs as", "threads", "ms, p50", "p95", "images/s", "what that is")
    for speed in speeds.every:
        figures = f"{speed.p50_ms:.3g}", f"{speed.p95_ms:.3g}", f"{speed.images_per_second:,.0f}"
        table.add_row(speed.form, str(speed.threads), *figures, MEANING[speed.form])
    say(table)
    say(f"Deploy the {speeds.form}; images/s in batches of {speeds.all_threads.batch}.")
