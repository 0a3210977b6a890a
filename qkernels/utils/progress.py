"""The one progress bar of the package: silent unless somebody is watching."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Advance(Protocol):
    """Move the bar by `steps` and show `note` beside it."""

    def __call__(self, steps: int = 1, note: str = "") -> None: ...


@contextmanager
def progress(
    description: str, total: int | None, *, done: int = 0, enabled: bool = True
) -> Iterator[Advance]:
    """A bar of `total` steps, if it is known, with elapsed and remaining time on stderr; yields `advance`.

    Nothing is drawn (and rich is not imported) when `enabled` is false or stderr is no terminal, which $FORCE_COLOR
    makes of anything, nor where rich is missing.
    """
    if not enabled or not (sys.stderr.isatty() or os.environ.get("FORCE_COLOR")):
        yield lambda steps=1, note="": None
        return
    try:
        import rich.progress as parts
        from rich.console import Console
    except ImportError:
        yield lambda steps=1, note="": None
        return
    columns = (
        parts.TextColumn("{task.description}"),
        parts.BarColumn(),
        parts.MofNCompleteColumn(),
        parts.TimeElapsedColumn(),
        parts.TimeRemainingColumn(),
        parts.TextColumn("{task.fields[note]}"),
    )
    with parts.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, completed=done, note="")

        def advance(steps: int = 1, note: str = "") -> None:
            bar.update(task, advance=steps, note=note)

        yield advance
