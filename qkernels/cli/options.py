"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qkernels import data as datasets

Data = Annotated[str, typer.Option(help=f"Data set: {', '.join(datasets.available())}.")]
Root = Annotated[Path | None, typer.Option(help="Folder of the data, else $QKERNELS_DATA.")]
Width = Annotated[int | None, typer.Option(help="Width of the model, else as published.", min=1)]
Size = Annotated[
    str, typer.Option(help="Size of one input, such as 1,3,224,224; its batch is only an example.")
]
