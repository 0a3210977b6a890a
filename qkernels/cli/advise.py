"""Try distilling, pruning and quantizing on a model; keep what pays. Stopped, it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

import qkernels
from qkernels import data as datasets
from qkernels import models
from qkernels.advise import advise as run_advise
from qkernels.cli.options import Data, Root, Width
from qkernels.cli.printing import check_writable, kilobytes, say
from qkernels.distill import TrainConfig
from qkernels.pipeline import create_model, describe_architecture, describe_data


def command(
    weights: Annotated[Path, typer.Argument(help="safetensors file of the float model.")],
    out: Annotated[Path, typer.Argument(help="int8 checkpoint of the best combination to write.")],
    model: Annotated[str, typer.Option(help="Which model the weights are of.")],
    floor: Annotated[str, typer.Option(help="Least accuracy, such as top1=91 (per cent).")],
    run: Annotated[Path, typer.Option(help="Folder of the trainings.")],
    latency: Annotated[
        str | None, typer.Option(help="Most time for one image, such as 2ms; else the fastest.")
    ] = None,
    students: Annotated[str, typer.Option(help="Smaller models to distil into: a,b.")] = "",
    width: Width = None,
    data: Data = "digits",
    data_root: Root = None,
    epochs: Annotated[int, typer.Option(help="Epochs of one training.", min=1)] = 10,
    lr: Annotated[float, typer.Option(help="Its learning rate.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Seed of students, calibration and training.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Picture of the frontier to draw.")] = None,
) -> None:
    check_writable(out, plot)
    dataset = datasets.load(data, data_root)
    net = models.load_weights(create_model(model, dataset, width), weights).eval()
    names = [name for name in students.split(",") if name]
    torch.manual_seed(seed)
    advice = run_advise(
        net,
        dataset,
        floor=_share(floor),
        latency_ms=None if latency is None else _milliseconds(latency),
        run_dir=run,
        config=TrainConfig.model_validate({"epochs": epochs, "lr": lr, "seed": seed}),
        students={name: create_model(name, dataset, width) for name in names},
        seed=seed,
    )
    print(advice)
    best = advice.best
    architecture = describe_architecture(best.student or model, dataset, width)
    if best.channels:
        architecture["kwargs"]["channels"] = best.channels
    qkernels.save(best.model, out, architecture=architecture, extra=describe_data(dataset))
    say(f"wrote {out}: {kilobytes(out)}, before {kilobytes(weights)}")
    if plot is not None:
        advice.plot(plot)
        say(f"wrote {plot}")


def _share(text: str) -> float:
    """Of "top1=91"."""
    name, _, percent = text.rpartition("=")
    try:
        share = float(percent) / 100
    except ValueError:
        share = -1.0
    if name not in ("", "top1") or not 0 <= share <= 1:
        raise ValueError(f"floor {text!r} must be per cent of top-1, such as top1=91")
    return share


def _milliseconds(text: str) -> float:
    """Of "2ms" or "0.5ms"."""
    try:
        return float(text.removesuffix("ms"))
    except ValueError:
        raise ValueError(f"latency {text!r} must be milliseconds, such as 2ms") from None
