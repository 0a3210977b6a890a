"""A time limit around a part of a coroutine."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self


class Deadline:
    """Cancels what its block waits for when the time is up, which is then a TimeoutError.

    What `asyncio.timeout` of Python 3.11 does, except that a cancellation from elsewhere at the same moment is taken
    for its own. `anyio.fail_after` costs 20 us more, a sixth of all that HTTP costs here.
    """

    def __init__(self, seconds: float) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        self._end = self._loop.time() + seconds
        self._timer: asyncio.TimerHandle
        self._is_over = False

    @property
    def left(self) -> float:
        """Seconds."""
        return max(0.0, self._end - self._loop.time())

    def earlier(self, seconds: float) -> None:
        """Take this much away."""
        self._end -= seconds
        self._timer.cancel()
        self._timer = self._loop.call_at(self._end, self._over)

    def __enter__(self) -> Self:
        self._timer = self._loop.call_at(self._end, self._over)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        if self._is_over and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _over(self) -> None:
        self._is_over = True
        assert self._task is not None
        self._task.cancel()
