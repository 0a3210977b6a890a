"""The command line: one module a command, each a thin front of functions that Python can call as well."""

from qkernels.cli.entry import main

__all__ = ["main"]
