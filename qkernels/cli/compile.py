"""Chain the layers of an int8 checkpoint into one program file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

import qkernels
from qkernels.cli.options import Size, Trust
from qkernels.cli.printing import kilobytes, say
from qkernels.quantization import read_metadata
from qkernels.utils.input_size import parse_size


def command(
    checkpoint: Annotated[Path, typer.Argument(help="An int8 checkpoint.")],
    out: Annotated[Path, typer.Argument(help="Program to write; it runs without torch.")],
    size: Size,
    exact: Annotated[
        bool, typer.Option("--exact/--fast", help="Bit for bit, or with int8 between more steps.")
    ] = True,
    max_batch: Annotated[int | None, typer.Option(help="Refuse larger batches.", min=1)] = None,
    trust: Trust = False,
) -> None:
    example = torch.zeros(parse_size(size))
    model = qkernels.compile(
        qkernels.load(checkpoint, trust=trust), example, exact=exact, max_batch=max_batch
    )
    say(model.report)
    model.save(out, extra=read_metadata(checkpoint)["extra"])
    say(f"wrote {out}: {kilobytes(out)}")
