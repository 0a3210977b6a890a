"""What a server is told when it starts."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from qkernels.cores import usable_cores
from qkernels.input_size import Size

_NAME = re.compile(r"[^/\x00-\x1f\x7f]+")
_LEAST = {
    "workers": 1, "threads": 1, "max_batch": 1, "max_delay": 0, "max_body": 1, "timeout": 0.001, "keep_alive": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """``sizes``: [N, C, H, W] or [N, C] of each input, whose N is only an example; none: they follow from the file.

    ``workers`` calls run at a time, each on ``threads`` threads. ``queue``: rows that may wait for them.
    ``max_delay``, ``timeout``: seconds a batch waits to fill up, and a request has in all, its headers before that.
    ``keep_alive``: seconds that a connection may be idle. ``max_body``: bytes. ``token``: white space around it is none
    of it, since files with secrets end in a newline.
    """

    path: Path
    name: str
    sizes: tuple[Size, ...] = ()
    workers: int = 1
    threads: int = 1
    max_batch: int = 32
    max_delay: float = 0.0
    queue: int = 256
    timeout: float = 10.0
    keep_alive: float = 75.0  # above the 60 of most load balancers, which would meet a reset
    max_body: int = 16 << 20
    token: str | None = None
    watch_every: float = 1.0  # seconds between two looks at the file

    def __post_init__(self) -> None:
        for field, low in _LEAST.items():
            value = getattr(self, field)
            if not math.isfinite(value):
                raise ValueError(f"{field}={value} must be a finite number")
            if value < low:
                raise ValueError(f"{field}={value} must be at least {low}")
        if self.token is not None:
            object.__setattr__(self, "token", checked_token(self.token))
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name={self.name!r} must be without / and control characters")
        if self.queue < self.max_batch:
            raise ValueError(
                f"queue={self.queue} must hold at least one batch, max_batch={self.max_batch}"
            )
        if self.workers * self.threads > (cores := usable_cores()):
            raise ValueError(
                f"workers={self.workers} x threads={self.threads} is above the {cores} cores that this process may use"
            )


def checked_token(text: str) -> str:
    """Without white space around it. Raises ValueError for one that no header can hold."""
    token = text.strip()
    if not token:
        raise ValueError("the bearer token is empty: set one, or unset $QKERNELS_TOKEN")
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise ValueError("the bearer token has characters that no header can hold")
    return token


def share_cores(workers: int | None, threads: int | None) -> tuple[int, int]:
    """What is left open gets the cores that are left: one worker on all of them, where both are."""
    cores = usable_cores()
    if threads is None:
        workers = workers or 1
        return workers, max(1, cores // workers)
    return workers or max(1, cores // threads), threads
