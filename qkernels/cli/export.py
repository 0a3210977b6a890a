"""Write a model for another runtime, its batch free."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import torch
import typer

import qkernels
from qkernels.cli.options import Trust
from qkernels.cli.printing import kilobytes, say
from qkernels.export import export_onnx
from qkernels.quantization import read_metadata
from qkernels.utils.extras import require
from qkernels.utils.input_size import image_size, parse_size


def command(
    model: Annotated[Path, typer.Argument(help="An int8 checkpoint for ONNX, else a program.")],
    out: Annotated[Path, typer.Argument(help="ONNX file, or folder of a Triton model, to write.")],
    to: Annotated[
        Literal["onnx", "triton"], typer.Option(help="QDQ form; Python backend, without torch.")
    ] = "onnx",
    size: Annotated[
        list[str] | None,
        typer.Option(help="Size of an input, such as 1,3,224,224; once an input, in order."),
    ] = None,
    trust: Trust = False,
) -> None:
    sizes = [parse_size(text) for text in size or ()]
    if to == "triton":
        require("starlette", "serve")
        from qkernels.serve.triton import write_triton_model

        written = write_triton_model(model, out, sizes)
        say(f"wrote {out}: model {out.name!r}, batches of up to {written.max_batch}")
        return
    examples = tuple(
        torch.zeros(size) for size in sizes or [image_size(model, read_metadata(model))]
    )
    export_onnx(qkernels.load(model, trust=trust), examples, out)
    say(f"wrote {out}: {kilobytes(out)}, before {kilobytes(model)}")
