"""Turn trained float weights into an int8 checkpoint that needs nothing else to be loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

import qkernels
from qkernels import data as datasets
from qkernels import recovery
from qkernels.cli.opening import open_model
from qkernels.cli.options import Data, Root, Width
from qkernels.cli.printing import kilobytes, say
from qkernels.pipeline import calibration_batches, describe_data
from qkernels.quantization import QuantConfig


def command(
    weights: Annotated[Path, typer.Argument(help="Float weights, or a pruned checkpoint.")],
    out: Annotated[Path, typer.Argument(help="int8 checkpoint to write.")],
    model: Annotated[str | None, typer.Option(help="Which model float weights are of.")] = None,
    width: Width = None,
    data: Data = "digits",
    data_root: Root = None,
    activation: Annotated[
        Literal["static", "dynamic", "weight_only"], typer.Option(help="Where ranges come from.")
    ] = "static",
    weight: Annotated[
        Literal["per_channel", "per_tensor"], typer.Option(help="One scale for what.")
    ] = "per_channel",
    observer: Annotated[
        str, typer.Option(help="How static ranges are found: minmax, percentile, mse, ...")
    ] = "percentile",
    equalize: Annotated[
        bool, typer.Option("--equalize", help="First give layers in a row like channel ranges.")
    ] = False,
    correct_bias: Annotated[
        bool, typer.Option("--correct-bias", help="Then restore the float model's channel means.")
    ] = False,
    images: Annotated[int, typer.Option(help="Training images to calibrate on.", min=1)] = 512,
    seed: Annotated[int, typer.Option(help="Seed of the choice of images.", min=0)] = 0,
) -> None:
    config = QuantConfig(activation=activation, weight=weight, observer=observer)
    dataset = datasets.load(data, data_root)
    net, architecture = open_model(weights, dataset, model, width)
    needs_data = activation == "static" or correct_bias
    batches = list(calibration_batches(dataset, images, seed)) if needs_data else None
    if equalize:
        net = recovery.equalize(net)
        say(str(qkernels.report(net)))
    exact = net if correct_bias else None
    net = (qkernels.quantize_ if exact is None else qkernels.quantize)(net, config, batches)
    report = qkernels.report(net)
    if exact is not None and batches is not None:
        shifts = qkernels.report(recovery.correct_bias_(net, exact, batches)).shifts
        say(f"biases of {len(shifts)} layers corrected, by up to {max(shifts.values()):.3g}")
    qkernels.save(net, out, architecture=architecture, extra=describe_data(dataset))
    say(report)
    say(f"wrote {out}: {kilobytes(out)}, before {kilobytes(weights)}")
