"""Turn trained float weights into an int8 checkpoint that needs nothing else to be loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from qkernels.cli.options import chosen_data, chosen_model, takes_data, takes_model
from qkernels.cli.printing import check_writable, kilobytes, say
from qkernels.cli.worse import check_not_ruined
from qkernels.pipeline.quantizing import Int8Plan, quantize_file
from qkernels.quantization import QuantConfig

HELPS = (
    "--weight per_channel, another --observer, --equalize, --correct-bias or --qat-epochs may help"
)


@takes_model
@takes_data
def command(
    weights: Annotated[Path, typer.Argument(help="Float weights, or a float checkpoint.")],
    out: Annotated[Path, typer.Argument(help="int8 checkpoint to write.")],
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
    qat_epochs: Annotated[
        int, typer.Option(help="Train in int8 for so many epochs; kept if it gets better.", min=0)
    ] = 0,
    qat_run: Annotated[Path | None, typer.Option(help="Folder of that training, to go on.")] = None,
    images: Annotated[int, typer.Option(help="Training images to calibrate on.", min=1)] = 512,
    seed: Annotated[int, typer.Option(help="Seed of the choice of images.", min=0)] = 0,
    may_lose: Annotated[
        float, typer.Option(help="Points of accuracy that may be lost; 100: they are not measured.")
    ] = 5.0,
    **flags: Any,
) -> None:
    config = QuantConfig(activation=activation, weight=weight, observer=observer)
    check_writable(out)
    plan = Int8Plan(config, images, seed, equalize, correct_bias, qat_epochs, qat_run)
    data, model = chosen_data(flags), chosen_model(flags)
    done = quantize_file(weights, out, data, model, plan, compare=may_lose < 100)
    for what in done.said:
        say(what)
    if done.after is not None:
        say(f"test {done.after.metric} {done.after}, before {done.before}")
    say(f"wrote {out}: {kilobytes(out)}, before {kilobytes(weights)}")
    if done.after is not None:
        check_not_ruined(done.after, done.before, data, may_lose, HELPS)
