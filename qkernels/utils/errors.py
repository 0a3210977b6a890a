"""What is said of an error that is not ours."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, or its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
