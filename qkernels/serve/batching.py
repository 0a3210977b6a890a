"""Requests that arrive close to each other run as one batch."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

from qkernels.serve.metrics import Metrics
from qkernels.serve.model import Arrays, Model
from qkernels.serve.settings import Settings


class QueueFull(Exception):
    """As many rows are waiting as may, or more than can be computed in time."""


@dataclass
class Times:
    """Seconds of one request: before its batch began, and of the batch."""

    queue: float = 0.0
    compute: float = 0.0


@dataclass(eq=False)
class _Waiting:
    inputs: Arrays
    future: asyncio.Future[Arrays]
    arrived: float
    started: float = 0.0

    @property
    def rows(self) -> int:
        return len(self.inputs[0])


class Batcher:
    """A queue before a model; all methods belong to the event loop's thread.

    A batch starts when a worker is free and it is full or its oldest request has waited ``max_delay``: while all
    workers are busy batches grow by themselves, so that the default of 0 costs a lone request nothing.
    """

    def __init__(
        self, model: Model, settings: Settings, executor: Executor, metrics: Metrics
    ) -> None:
        self.model = model
        self._settings, self._executor, self._metrics = settings, executor, metrics
        self._waiting: deque[_Waiting] = deque()
        self._rows = 0  # of all that wait
        self._row_seconds = 0.0  # that a row has kept the workers for, lately
        self._running = 0
        self._looking = False
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def full(self) -> bool:
        """Whether no row more may wait."""
        return self._is_full(1, self._settings.timeout)

    def _is_full(self, rows: int, seconds: float) -> bool:
        """A request that would not be answered in its time is worth less than one that is refused at once: computed
        just too late, such requests would take all of the workers' time, and none would be answered."""
        return self._rows + rows > self._settings.queue or self._rows * self._row_seconds > seconds

    async def infer(
        self, inputs: Arrays, seconds: float = math.inf, times: Times | None = None
    ) -> Arrays:
        """Rows of the batch that these inputs run in. Cancelled, it leaves the queue. Raises QueueFull at once, also
        where the rows that wait already need more than ``seconds``, the time that is left to the request.

        ``times``, where given, is filled in.
        """
        if self._is_full(len(inputs[0]), seconds):
            raise QueueFull
        waiting = _Waiting(inputs, self._loop.create_future(), time.perf_counter())
        self._waiting.append(waiting)
        self._count(waiting.rows)
        if not self._looking:  # once for all that arrive together
            self._looking = True
            self._loop.call_soon(self._start)
        try:
            results = await waiting.future
        except asyncio.CancelledError:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
                self._count(-waiting.rows)
            raise
        if times is not None:
            times.queue = waiting.started - waiting.arrived
            times.compute = time.perf_counter() - waiting.started
        return results

    def _start(self) -> None:
        """Start the batches that are due, and come back for one that will be."""
        self._looking = False
        while self._waiting and self._running < self._settings.workers:
            left = self._waiting[0].arrived + self._settings.max_delay - time.perf_counter()
            if self._rows < self.model.max_batch and left > 0:
                if self._timer is None:
                    self._timer = self._loop.call_later(left, self._due)
                return
            batch = self._take()
            started = time.perf_counter()
            for waiting in batch:
                waiting.started = started
                self._metrics.queue_seconds.observe(started - waiting.arrived)
            self._running += 1
            run = self._loop.run_in_executor(self._executor, self._run, batch)
            run.add_done_callback(partial(self._finish, batch, started))

    def _due(self) -> None:
        self._timer = None
        self._start()

    def _take(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        rows = 0
        while self._waiting and rows + self._waiting[0].rows <= self.model.max_batch:
            batch.append(self._waiting.popleft())
            rows += batch[-1].rows
        self._count(-rows)
        return batch

    def _count(self, rows: int) -> None:
        self._rows += rows
        self._metrics.queue_rows.inc(rows)

    def _run(self, batch: list[_Waiting]) -> list[Arrays]:
        """In a worker's thread."""
        self._metrics.batch_rows.observe(sum(waiting.rows for waiting in batch))
        with self._metrics.compute_seconds.time():
            return self.model.run_together([waiting.inputs for waiting in batch])

    def _finish(
        self, batch: list[_Waiting], started: float, run: asyncio.Future[list[Arrays]]
    ) -> None:
        self._running -= 1
        row_seconds = (time.perf_counter() - started) / sum(waiting.rows for waiting in batch)
        self._row_seconds += 0.2 * (row_seconds / self._settings.workers - self._row_seconds)
        error = run.exception()
        for i, waiting in enumerate(batch):
            if waiting.future.done():  # its client went, or its time was up
                continue
            if error is None:
                waiting.future.set_result(run.result()[i])
            else:
                waiting.future.set_exception(error)
        self._start()
