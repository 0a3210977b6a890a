"""What the connections of a server share: how many there may be, and how long each may stay without asking."""

from __future__ import annotations

import asyncio
import logging
import resource
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qkernels.serve.metrics import Metrics

if TYPE_CHECKING:
    from qkernels.serve.door import Door

logger = logging.getLogger("qkernels.serve")

_RESERVED = 64  # file descriptors for everything but connections
_FEWEST = 16
_MOST_REFUSED = 32  # connections that are told so, of those for which there is no room


def most_connections() -> int:
    """How many there may be: the process's file descriptors, whose limit is raised as far as it may be, less some."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = 1 << 16 if hard == resource.RLIM_INFINITY else min(hard, 1 << 16)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(_FEWEST, soft - _RESERVED)


class Refusals:
    """What a full server answers, with and without being the last answer, for as long as its ``headers`` are these."""

    def __init__(self) -> None:
        self.headers: Any = None
        self.written: dict[bool, tuple[bytes, bool]] = {}


class Connections:
    """Ends connections that wait too long.

    They may wait for the rest of a request's headers, or for their client to read, for ``timeout`` seconds; for another
    request, for ``keep_alive``. Beyond ``most`` a new connection ends the one that has been idle longest, or is refused
    where all are busy, instead of being reset for want of a descriptor.
    """

    def __init__(self, metrics: Metrics, timeout: float, keep_alive: float, most: int) -> None:
        self._ended = metrics.connections_ended
        self._timeout, self._keep_alive, self._most = timeout, keep_alive, most
        self._all: set[Door] = set()
        self._idle: dict[Door, float] = {}  # since when, the oldest first
        self._is_full = False
        self.refusals = Refusals()
        self.is_refusing = False  # the last request for results was one too many
        self._now: Callable[[], float] = asyncio.get_running_loop().time
        metrics.connections.set_function(lambda: len(self._all))

    def admit(self, door: Door) -> bool:
        """Whether there is room for it, if need be in the place of an idle one."""
        self._all.add(door)
        self._idle[door] = self._now()
        if len(self._all) <= self._most:
            return True
        if not self._is_full:
            self._is_full = True
            logger.warning(
                "%d connections are open, as many as the limit of open files allows", self._most
            )
        oldest = next(iter(self._idle))
        self._ended.labels("no room").inc()
        if oldest is door:
            if len(self._all) > self._most + _MOST_REFUSED:
                door.transport.abort()
            return False
        self.forget(oldest)
        oldest.transport.close()
        return True

    def rest(self, door: Door) -> None:
        """It has its answer and asks nothing yet."""
        self._idle[door] = self._now()

    def wake(self, door: Door) -> None:
        self._idle.pop(door, None)

    def forget(self, door: Door) -> None:
        self._all.discard(door)
        self._idle.pop(door, None)
        if self._is_full and len(self._all) < 0.9 * self._most:
            self._is_full = False
            logger.info("%d connections are open, there is room again", len(self._all))

    def sweep(self) -> None:
        """End those whose time is up; to be called about once a second."""
        now = self._now()
        for door, since in list(self._idle.items()):
            if since > now - self._keep_alive and not (door.is_new and since < now - self._timeout):
                continue
            self._ended.labels("idle").inc()
            self._idle.pop(door)
            door.transport.close()
        for door in [door for door in self._all if door.waits_since < now - self._timeout]:
            self._ended.labels("slow").inc()
            door.give_up()
