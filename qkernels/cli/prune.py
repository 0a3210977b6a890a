"""Drop channels or blocks, then train on with the unpruned model as the teacher; stopped, it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from qkernels import prune as pruning
from qkernels.cli.flags import given
from qkernels.cli.options import chosen_data, chosen_model, takes_data, takes_model
from qkernels.cli.printing import check_writable, kilobytes, say
from qkernels.cli.worse import check_not_ruined
from qkernels.pipeline.pruning import prune_model


@takes_model
@takes_data
def command(
    weights: Annotated[Path, typer.Argument(help="Float weights, or a checkpoint.")],
    out: Annotated[Path, typer.Argument(help="float checkpoint to write, for quantize.")],
    run: Annotated[Path, typer.Option(help="Folder of the run.")],
    drop: Annotated[
        Literal["channels", "blocks"], typer.Option(help="What goes: blocks save calls as well.")
    ] = "channels",
    share: Annotated[float, typer.Option(help="Share of the multiply-adds to drop.")] = 0.4,
    multiple: Annotated[
        int, typer.Option(help="Channels left are multiples of this.", min=1)
    ] = pruning.PANEL,
    importance: Annotated[
        str, typer.Option(help="By what channels go: lamp, taylor, ..., else by their magnitude.")
    ] = "",
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="Narrow a transformer's tokens too.")
    ] = False,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs of training afterwards, else by the data.", min=1)
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Its learning rate, else by data and model.")
    ] = None,
    may_lose: Annotated[
        float, typer.Option(help="Points of accuracy that may be lost; more is an error.")
    ] = 5.0,
    **flags: Any,
) -> None:
    check_writable(out)
    data = chosen_data(flags)
    done = prune_model(
        weights, out, data, chosen_model(flags), run=run, share=share, drop=drop, multiple=multiple,
        importance=importance, embeddings=embeddings,
        settings=given({"epochs": epochs, "lr": lr}),
    )  # fmt: skip
    for note in done.notes:
        say(note)
    say(f"multiply-adds {done.macs[0]:,} -> {done.macs[1]:,}")
    say(f"test {done.after.metric} {done.after}, before {done.before}")
    say(f"wrote {out}: {kilobytes(out)}, before {kilobytes(weights)}")
    check_not_ruined(done.after, done.before, data, may_lose)
