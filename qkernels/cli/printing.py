"""What commands print, and the check of the files that they shall write."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console
from rich.table import Table


def say(what: object) -> None:
    """Print a line, a table or a report as it is, without colours of its own; of several processes the first one's."""
    if os.environ.get("RANK", "0") != "0":
        return
    Console(highlight=False, soft_wrap=isinstance(what, str)).print(what)


def say_pairs(pairs: dict[str, str]) -> None:
    """Print names and what belongs to them in two columns."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for name, value in pairs.items():
        table.add_row(name, value)
    say(table)


def kilobytes(path: Path) -> str:
    """The size of a file for people."""
    return f"{path.stat().st_size / 1e3:,.1f} KB"


def check_writable(*files: Path | None) -> None:
    """Refuse files that could not be written: before the work, not after it."""
    for file in filter(None, files):
        if file.is_dir():
            raise IsADirectoryError(f"{file}: is a folder, name a file to write")
        if not file.parent.is_dir():
            raise FileNotFoundError(f"{file}: there is no folder {file.parent} to write it to")
