"""Serve a program, or an int8 checkpoint, over HTTP; see qkernels serve --help."""

from __future__ import annotations

import os
import sys

import typer

from qkernels.utils.extras import require

SETTINGS = {  # the words go on to the server, whose own help it is
    "add_help_option": False,
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True},
}


def command(context: typer.Context) -> None:
    require("uvicorn", "serve")
    # This process holds torch; the one that takes its place loads it for a checkpoint only.
    os.execv(sys.executable, [sys.executable, "-m", "qkernels.serve", *context.args])
