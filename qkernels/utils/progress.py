"""The one progress bar of the package: silent unless somebody is watching."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from qkernels.utils.extras import require


class Advance(Protocol):
    """Move the bar by `steps` and show `note` beside it."""

    def __call__(self, steps: int = 1, note: str = "") -> None: ...


@contextmanager
def progress(
    description: str, total: int, *, done: int = 0, enabled: bool = True
) -> Iterator[Advance]:
    """A bar of `total` steps with elapsed and remaining time on stderr; yields `advance`.

    Nothing is drawn (and rich is not imported) when `enabled` is false or stderr is not a terminal.
    """
    if not enabled or not sys.stderr.isatty():
        yield lambda steps=1, note="": None
        return
    rich_progress, console = require("rich.progress"), require("rich.console")
    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeElapsedColumn(),
        rich_progress.TimeRemainingColumn(),
        rich_progress.TextColumn("{task.fields[note]}"),
    )
    with rich_progress.Progress(*columns, console=console.Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, completed=done, note="")

        def advance(steps: int = 1, note: str = "") -> None:
            bar.update(task, advance=steps, note=note)

        yield advance
