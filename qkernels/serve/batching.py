"""Requests that arrive close to each other run as one batch."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from qkernels.serve.metrics import ModelMetrics
from qkernels.serve.model import Arrays, Model
from qkernels.serve.settings import Settings
from qkernels.serve.statistics import Statistics
from qkernels.serve.workers import Workers


class QueueFull(Exception):
    """There are as many rows waiting as may, or more than can be computed in time."""


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

    @property
    def sizes(self) -> list[tuple[int, ...]]:
        """The sizes of one example; they differ between requests only where a model takes any number of ids."""
        return [x.shape[1:] for x in self.inputs]


@dataclass
class _Ran:
    """A batch, the seconds of its computation, and what came of it."""

    batch: list[_Waiting]
    seconds: float
    results: list[Arrays] | Exception


class Batcher:
    """A queue before a model; all methods belong to the event loop's thread.

    A batch starts when a worker is free and it is full or its oldest request has waited ``max_delay``: while all
    workers are busy batches grow by themselves, so that the default of 0 costs a lone request nothing.
    """

    def __init__(
        self, model: Model, settings: Settings, workers: Workers, metrics: ModelMetrics
    ) -> None:
        self.model, self.settings = model, settings
        self.statistics = Statistics()
        self.used = 0.0
        self._workers, self._metrics = workers, metrics
        self._waiting: deque[_Waiting] = deque()
        self._rows = 0  # of all that wait
        self._row_seconds = 0.0  # that a row has kept the workers for, lately
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def full(self) -> bool:
        """Whether no row more may wait."""
        return self._is_full(1, self.settings.timeout)

    def _is_full(self, rows: int, seconds: float) -> bool:
        """Whether so many rows more are too many for the queue, or for the time that they have.

        A request that would not be answered in its time is worth less than one that is refused at once: computed just
        too late, such requests would take all of the workers' time, and none would be answered.
        """
        if self._rows + rows > self.settings.queue:
            return True
        if self._rows == 0:
            return False
        return self._rows * self._row_seconds * self._workers.contenders() > seconds

    async def infer(
        self, inputs: Arrays, seconds: float = math.inf, times: Times | None = None
    ) -> Arrays:
        """Rows of the batch that these inputs run in. Cancelled, it leaves the queue.

        Raises QueueFull at once, also where the rows that wait already need more than ``seconds``, the time that is
        left to the request. ``times``, where given, is filled in.
        """
        if self._is_full(len(inputs[0]), seconds):
            raise QueueFull
        waiting = _Waiting(inputs, self._loop.create_future(), time.perf_counter())
        self._waiting.append(waiting)
        self._count(waiting.rows)
        self._workers.ask(self)
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

    def take(self) -> Callable[[], _Ran] | None:
        """The batch that is due, for the workers; one that will be asks again then."""
        if not self._waiting:
            return None
        left = self._waiting[0].arrived + self.settings.max_delay - time.perf_counter()
        if self._rows < self.model.max_batch and left > 0:
            if self._timer is None:
                self._timer = self._loop.call_later(left, self._due)
            return None
        batch = self._next_batch()
        started = time.perf_counter()
        for waiting in batch:
            waiting.started = started
            self._metrics.queue_seconds.observe(started - waiting.arrived)
            self.statistics.queue.add(started - waiting.arrived)
        return partial(self._run, batch)

    def _due(self) -> None:
        self._timer = None
        self._workers.ask(self)

    def _next_batch(self) -> list[_Waiting]:
        """The oldest request, and those behind it of the same sizes, in their order, that fit."""
        batch, others = list[_Waiting](), list[_Waiting]()
        rows, sizes = 0, self._waiting[0].sizes
        while self._waiting and rows < self.model.max_batch:
            waiting = self._waiting.popleft()
            if waiting.sizes != sizes:
                others.append(waiting)
            elif rows + waiting.rows <= self.model.max_batch:
                batch.append(waiting)
                rows += waiting.rows
            else:
                others.append(waiting)
                break
        self._waiting.extendleft(reversed(others))
        self._count(-rows)
        return batch

    def _count(self, rows: int) -> None:
        self._rows += rows
        self._metrics.queue_rows.inc(rows)

    def _run(self, batch: list[_Waiting]) -> _Ran:
        """Runs in a worker's thread."""
        began = time.perf_counter()
        results: list[Arrays] | Exception
        try:
            results = self.model.run_together([waiting.inputs for waiting in batch])
        except Exception as error:
            results = error
        return _Ran(batch, time.perf_counter() - began, results)

    def finish(self, run: asyncio.Future[_Ran], seconds: float) -> None:
        """Called by the workers, which were kept for ``seconds``."""
        ran = run.result()
        rows = sum(waiting.rows for waiting in ran.batch)
        self._row_seconds += 0.2 * (seconds / rows / self._workers.count - self._row_seconds)
        self._metrics.batch_rows.observe(rows)
        self._metrics.compute_seconds.observe(ran.seconds)
        self.statistics.ran(rows, len(ran.batch), ran.seconds)
        for i, waiting in enumerate(ran.batch):
            if waiting.future.done():  # its client went, or its time was up
                continue
            if isinstance(ran.results, Exception):
                waiting.future.set_exception(ran.results)
            else:
                waiting.future.set_result(ran.results[i])
