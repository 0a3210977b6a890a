"""The threads on which the models of a server compute."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol


class Queue(Protocol):
    """What waits for a model. ``used``: seconds of the workers that it has had."""

    used: float

    def take(self) -> Callable[[], Any] | None:
        """The next batch, as what a thread has to call; None while it is not due, or there is none."""

    def finish(self, run: asyncio.Future[Any], seconds: float) -> None:
        """Hand the batch's results out."""


class Workers:
    """Shared by all models: a free one goes to whichever model has had least of their time, of those that ask.

    A model that has been idle does not make up for it: it begins where the last one that was served stands. All methods
    belong to the event loop's thread.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._threads = ThreadPoolExecutor(count, "worker")
        self._free = count
        self._asking: dict[Queue, None] = {}
        self._running: dict[Queue, int] = {}
        self._level = 0.0  # what the last one served had used
        self._is_looking = False

    def contenders(self) -> int:
        """How many models share the workers now."""
        return max(1, len(self._asking.keys() | self._running.keys()))

    def ask(self, queue: Queue) -> None:
        """It has something to run; once for all that arrive together."""
        if queue not in self._asking:
            if queue not in self._running:
                queue.used = max(queue.used, self._level)
            self._asking[queue] = None
        if not self._is_looking:
            self._is_looking = True
            asyncio.get_running_loop().call_soon(self._hand_out)

    async def run(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Something beside the batches."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    def close(self) -> None:
        self._threads.shutdown(wait=False)

    def _hand_out(self) -> None:
        self._is_looking = False
        while self._free and self._asking:
            queue = (
                min(self._asking, key=_used) if len(self._asking) > 1 else next(iter(self._asking))
            )
            work = queue.take()
            if work is None:
                del self._asking[queue]  # it asks again when something is due
                continue
            self._level = queue.used
            self._free -= 1
            self._running[queue] = self._running.get(queue, 0) + 1
            run = asyncio.get_running_loop().run_in_executor(self._threads, work)
            run.add_done_callback(partial(self._done, queue, time.perf_counter()))

    def _done(self, queue: Queue, began: float, run: asyncio.Future[Any]) -> None:
        seconds = time.perf_counter() - began
        self._free += 1
        if self._running[queue] == 1:
            del self._running[queue]
        else:
            self._running[queue] -= 1
        queue.used += seconds
        queue.finish(run, seconds)
        self._hand_out()


def _used(queue: Queue) -> float:
    return queue.used
