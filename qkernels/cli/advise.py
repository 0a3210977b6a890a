"""Try distilling, pruning and quantizing on a model; keep what pays. Stopped, it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from qkernels.cli.flags import given
from qkernels.cli.options import chosen_data, chosen_model, takes_data, takes_model
from qkernels.cli.printing import check_writable, kilobytes, say
from qkernels.pipeline.advising import advise_on


@takes_model
@takes_data
def command(
    weights: Annotated[Path, typer.Argument(help="Float weights, or a float checkpoint.")],
    out: Annotated[Path, typer.Argument(help="int8 checkpoint of the best combination to write.")],
    floor: Annotated[str, typer.Option(help="Least accuracy, such as top1=91 (per cent).")],
    run: Annotated[Path, typer.Option(help="Folder of the trainings.")],
    latency: Annotated[
        str | None, typer.Option(help="Most time for one image, such as 2ms; else the fastest.")
    ] = None,
    students: Annotated[str, typer.Option(help="Smaller models to distil into: a,b.")] = "",
    epochs: Annotated[
        int | None, typer.Option(help="Epochs of one training, else by data and model.", min=1)
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Its learning rate, else so.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of students, calibration and training.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Picture of the frontier to draw.")] = None,
    **flags: Any,
) -> None:
    check_writable(out, plot)
    least, most = _share(floor), None if latency is None else _milliseconds(latency)
    names = [name for name in students.split(",") if name]
    advice = advise_on(
        weights, out, chosen_data(flags), chosen_model(flags), floor=least, latency_ms=most, run=run,
        students=names, settings=given({"epochs": epochs, "lr": lr, "seed": seed}), seed=seed,
    )  # fmt: skip
    print(advice)
    say(f"wrote {out}: {kilobytes(out)}, before {kilobytes(weights)}")
    if plot is not None:
        advice.plot(plot)
        say(f"wrote {plot}")


def _share(text: str) -> float:
    """The share that a text such as "top1=91" names."""
    name, _, percent = text.rpartition("=")
    try:
        share = float(percent) / 100
    except ValueError:
        share = -1.0
    if name not in ("", "top1") or not 0 <= share <= 1:
        raise ValueError(f"floor {text!r} must be per cent of top-1, such as top1=91")
    return share


def _milliseconds(text: str) -> float:
    """The milliseconds that a text such as "2ms" or "0.5ms" names."""
    try:
        return float(text.removesuffix("ms"))
    except ValueError:
        raise ValueError(f"latency {text!r} must be milliseconds, such as 2ms") from None
