"""Rows of words as a table: plain text for `print`, rich for a terminal."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def aligned(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """A line a row, each column as wide as its longest cell; the columns `right` end together, the others begin."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def rich_table(
    title: str, header: Sequence[str], rows: Iterable[tuple[Sequence[str], bool]], below: list[str]
) -> Table:
    """A table of (cells, whether dim) rows, with lines below it."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, caption=Text("\n".join(below)), caption_justify="left")
    for heading in header:
        table.add_column(heading)
    for cells, dim in rows:
        table.add_row(*map(Text, cells), style="dim" if dim else "")  # names may look like markup
    return table
