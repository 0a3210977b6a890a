"""One inference, whichever protocol it came by: the model is found, the request read, put into a batch and counted."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from qkernels.serve.errors import RequestError
from qkernels.serve.limits import TimeLimit, time_limit
from qkernels.serve.model import Arrays, Model
from qkernels.serve.protocol import Request
from qkernels.serve.repository import Served, Version

Read = Callable[[TimeLimit, Model], Awaitable[Request]]
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Answered:
    """What an answer is made of."""

    served: Served
    version: Version
    request: Request
    results: Arrays

    @property
    def model(self) -> Model:
        return self.version.loaded.model


async def infer(
    served: Served, number: str | None, read: Read, encode: Callable[[Answered], Answer]
) -> Answer:
    """The answer by the model's version of this number.

    ``read`` gets the request within the time limit, and says when its body is there. Raises RequestError.
    """
    version = served.find(number)
    batcher, began = version.loaded, time.perf_counter()
    try:
        with time_limit(batcher.settings.timeout) as limit:
            asked = await read(limit, batcher.model)
            served.compare(asked.model_name, asked.model_version, version)
            if asked.timeout is not None:
                limit.shorten(asked.timeout)
            decoded = time.perf_counter()
            results = await batcher.infer(asked.inputs, limit.left)
        computed = time.perf_counter()
        answer = encode(Answered(served, version, asked, results))
    except Exception:
        batcher.statistics.fail.add(time.perf_counter() - began)
        raise
    batcher.statistics.answered(began, limit.came or began, decoded, computed)
    return answer


async def counted(
    nobody: Served,
    find: Callable[[], Served],
    answer: Callable[[Served], Awaitable[Answer]],
    refuse: Callable[[Exception], Awaitable[tuple[int, Answer]]],
) -> Answer:
    """``answer`` of the model that ``find`` finds, or what ``refuse`` makes of an exception, with its status.

    It counts in the metrics of the model, or of ``nobody`` where there is none.
    """
    served, began, status = nobody, time.perf_counter(), 200
    try:
        served = find()
        served.inside += 1
        try:
            answered = await answer(served)
        finally:
            served.inside -= 1
    except Exception as error:
        status, answered = await refuse(error)
    served.metrics.request_seconds.observe(time.perf_counter() - began)
    served.metrics.answered(status)
    return answered


def status_of(error: Exception) -> int:
    return error.status if isinstance(error, RequestError) else 500
