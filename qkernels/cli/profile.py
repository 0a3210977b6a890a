"""Show where the time goes: each step's, the bytes that it moves, its share of the peak."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

import qkernels
from qkernels.cli.options import Size, Trust
from qkernels.cli.printing import say
from qkernels.program import Program
from qkernels.utils.input_size import parse_size


def command(
    file: Annotated[Path, typer.Argument(help="A program, or an int8 checkpoint to chain first.")],
    size: Size,
    threads: Annotated[int, typer.Option(help="Threads of a call.", min=1)] = 1,
    plot: Annotated[Path | None, typer.Option(help="Picture to draw: .svg, .png, .pdf.")] = None,
    trust: Trust = False,
) -> None:
    x = torch.zeros(parse_size(size))
    torch.set_num_threads(threads)
    if file.suffix == ".safetensors":
        steps = qkernels.compile(qkernels.load(file, trust=trust), x).profile(x)
    else:
        steps = Program.load(file, threads).profile(x.numpy())
    print(steps)
    if plot is not None:
        steps.plot(plot)
        say(f"wrote {plot}")
