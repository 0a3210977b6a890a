"""What a server is told when it starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qkernels.cores import usable_cores
from qkernels.input_size import Size


@dataclass(frozen=True)
class Settings:
    """``sizes``: [N, C, H, W] or [N, C] of each input, whose N is only an example; none: they follow from the file.

    ``workers`` calls run at a time, each on ``threads`` threads. ``queue``: rows that may wait for them.
    ``max_delay``, ``timeout``: seconds a batch waits to fill up, and a request has in all. ``max_body``: bytes.
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
    max_body: int = 16 << 20
    token: str | None = None
    watch_every: float = 1.0  # seconds between two looks at the file

    def __post_init__(self) -> None:
        least = {"workers": 1, "threads": 1, "max_batch": 1, "max_delay": 0, "max_body": 1}
        for field, low in least.items():
            if getattr(self, field) < low:
                raise ValueError(f"{field}={getattr(self, field)} must be at least {low}")
        if self.timeout <= 0:
            raise ValueError(f"timeout={self.timeout} must be above 0 seconds")
        if self.token == "":
            raise ValueError("the bearer token is empty: set one, or unset $QKERNELS_TOKEN")
        if self.queue < self.max_batch:
            raise ValueError(
                f"queue={self.queue} must hold at least one batch, max_batch={self.max_batch}"
            )
        if self.workers * self.threads > (cores := usable_cores()):
            raise ValueError(
                f"workers={self.workers} x threads={self.threads} is above the {cores} cores that this process may use"
            )


def share_cores(workers: int | None, threads: int | None) -> tuple[int, int]:
    """What is left open gets the cores that are left: one worker on all of them, where both are."""
    cores = usable_cores()
    if threads is None:
        workers = workers or 1
        return workers, max(1, cores // workers)
    return workers or max(1, cores // threads), threads
