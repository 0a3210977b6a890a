"""Batches, limits and deadlines, with models that take as long as a test wants."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkernels.serve.batching import Batcher, QueueFull
from qkernels.serve.deadline import Deadline
from qkernels.serve.metrics import Metrics
from qkernels.serve.model import Arrays, Model, Tensor
from qkernels.serve.settings import Settings
from qkernels.serve.workers import Workers


class Gate:
    """A model that adds 1, notes its batches, and waits until it is let go."""

    def __init__(self, is_open: bool = True) -> None:
        self.batches: list[int] = []
        self.open = threading.Event()
        if is_open:
            self.open.set()

    def run(self, inputs: Arrays) -> Arrays:
        self.batches.append(len(inputs[0]))
        assert self.open.wait(20)
        if np.any(inputs[0] == 13):
            raise RuntimeError("thirteen")
        return [inputs[0] + 1]

    async def reached(self) -> None:
        while not self.batches:
            await asyncio.sleep(0.001)


@asynccontextmanager
async def batcher(gate: Gate, **changed: Any) -> AsyncIterator[Batcher]:
    given = Settings(Path("none"), "gate", **({"max_batch": 8, "queue": 16} | changed))
    model = Model("v", "p", (Tensor("x", (1,)),), (Tensor("y", (1,)),), given.max_batch, gate.run)
    workers = Workers(given.workers)
    try:
        yield Batcher(model, given, workers, Metrics().of("gate"))
    finally:
        gate.open.set()
        workers.close()


def rows(*values: float) -> Arrays:
    return [np.array(values, np.float32)[:, None]]


def asynchronous(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 30))

    return run


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 8), min_size=1, max_size=20), st.sampled_from([0.0, 0.002]))
def test_every_request_gets_its_own_rows(sizes: list[int], delay: float) -> None:
    async def run() -> None:
        gate = Gate()
        async with batcher(gate, queue=200, max_delay=delay) as queue:
            asked = [
                rows(*np.arange(i * 100, i * 100 + n, dtype=float)) for i, n in enumerate(sizes)
            ]
            answers = await asyncio.gather(*(queue.infer(x) for x in asked))
        for x, (y,) in zip(asked, answers, strict=True):
            assert np.array_equal(y, x[0] + 1)
        assert max(gate.batches) <= 8 and sum(gate.batches) == sum(sizes)

    asyncio.run(asyncio.wait_for(run(), 30))


@asynchronous
async def test_requests_that_meet_a_busy_worker_run_together() -> None:
    gate = Gate(is_open=False)
    async with batcher(gate) as queue:
        first = asyncio.create_task(queue.infer(rows(0)))
        await gate.reached()
        rest = [asyncio.create_task(queue.infer(rows(i))) for i in range(10)]
        await asyncio.sleep(0.01)
        gate.open.set()
        await asyncio.gather(first, *rest)
    assert gate.batches == [1, 8, 2]


@asynchronous
async def test_a_batch_waits_for_the_delay_unless_it_is_full() -> None:
    never, soon = Gate(), Gate()
    async with batcher(never, max_delay=1e6) as queue:  # `asynchronous` gives up long before
        await asyncio.gather(*(queue.infer(rows(i)) for i in range(8)))
    async with batcher(soon, max_delay=1.0) as queue:
        one = asyncio.create_task(queue.infer(rows(1)))
        await asyncio.sleep(0.01)
        assert not one.done()
        await asyncio.gather(one, queue.infer(rows(2)))
    assert never.batches == [8] and soon.batches == [2]


@asynchronous
async def test_a_full_queue_refuses_at_once_and_keeps_what_it_has() -> None:
    gate = Gate(is_open=False)
    async with batcher(gate) as queue:
        first = asyncio.create_task(queue.infer(rows(0)))
        await gate.reached()
        kept = [asyncio.create_task(queue.infer(rows(i, i))) for i in range(8)]
        await asyncio.sleep(0.001)
        assert queue.full
        with pytest.raises(QueueFull):
            await queue.infer(rows(1))
        gate.open.set()
        await asyncio.gather(first, *kept)
        assert not queue.full


class SlowGate(Gate):
    def run(self, inputs: Arrays) -> Arrays:
        time.sleep(0.02)
        return super().run(inputs)


@asynchronous
async def test_a_request_that_cannot_be_answered_in_its_time_is_refused_at_once() -> None:
    async with batcher(SlowGate(), max_batch=1) as queue:
        for _ in range(20):  # until it knows how long a row takes
            await queue.infer(rows(0), 0.001)
        asked = (queue.infer(rows(i), 0.05) for i in range(10))
        got = await asyncio.gather(*asked, queue.infer(rows(1)), return_exceptions=True)
        refused = [isinstance(answer, QueueFull) for answer in got]
        assert not refused[0] and all(refused[3:10]) and not refused[10]


@asynchronous
async def test_a_request_that_ran_out_of_time_leaves_the_queue_and_is_not_computed() -> None:
    gate = Gate(is_open=False)
    async with batcher(gate) as queue:
        first = asyncio.create_task(queue.infer(rows(0)))
        await gate.reached()
        late = [asyncio.create_task(queue.infer(rows(i, i))) for i in range(8)]
        await asyncio.sleep(0.001)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        assert not queue.full
        last = asyncio.create_task(queue.infer(rows(5)))
        await asyncio.sleep(0.001)
        gate.open.set()
        assert (await last)[0] == 6
        await first
    assert gate.batches == [1, 1]


@asynchronous
async def test_a_model_that_fails_answers_its_batch_and_goes_on() -> None:
    async with batcher(Gate()) as queue:
        with pytest.raises(RuntimeError, match="thirteen"):
            await queue.infer(rows(13))
        assert (await queue.infer(rows(1)))[0] == 2


@pytest.mark.parametrize("workers", [1, 3])
@asynchronous
async def test_as_many_calls_run_at_a_time_as_there_are_workers(
    monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr("qkernels.serve.settings.usable_cores", lambda: 3)
    gate = Gate(is_open=False)
    async with batcher(gate, max_batch=1, workers=workers) as queue:
        tasks = [asyncio.create_task(queue.infer(rows(i))) for i in range(5)]
        await asyncio.sleep(0.05)
        assert gate.batches == [1] * workers
        gate.open.set()
        answers = await asyncio.gather(*tasks)
    assert [float(y[0, 0]) for (y,) in answers] == [1, 2, 3, 4, 5]


@asynchronous
async def test_a_request_given_up_while_it_runs_costs_the_rest_of_its_batch_nothing() -> None:
    gate = Gate(is_open=False)
    async with batcher(gate) as queue:
        gone, kept = (asyncio.create_task(queue.infer(rows(i))) for i in (1, 2))
        await gate.reached()
        gone.cancel()
        gate.open.set()
        assert (await kept)[0] == 3
        assert (await queue.infer(rows(3)))[0] == 4
    assert gate.batches == [2, 1]


@asynchronous
async def test_a_deadline_ends_what_is_waited_for_and_may_come_nearer() -> None:
    never = asyncio.get_running_loop().create_future()
    began = time.perf_counter()
    with pytest.raises(TimeoutError), Deadline(30) as deadline:
        deadline.earlier(29.98)
        await never
    assert deadline.left == 0 and time.perf_counter() - began >= 0.02
    with Deadline(30) as deadline:
        await asyncio.sleep(0)
    assert deadline.left > 0
    with pytest.raises(KeyError), Deadline(30):
        raise KeyError
    await asyncio.sleep(0.03)  # nothing is left that cancels this
