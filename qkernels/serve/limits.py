"""The time and the bytes that a request may take."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from starlette.requests import ClientDisconnect, Request

from qkernels.serve.batching import QueueFull
from qkernels.serve.deadline import Deadline
from qkernels.serve.door import FULL
from qkernels.serve.encodings import check_encoding, expanded
from qkernels.serve.errors import COME_BACK, RequestError


class TimeLimit(Deadline):
    """The time limit of a request.

    ``came``: when its body was there, by `time.perf_counter`, or None; it says whose fault it is when the time is up.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds
        self.came: float | None = None

    def body_is_here(self) -> None:
        self.came = time.perf_counter()

    def shorten(self, seconds: float) -> None:
        """Leave so many seconds from the start, where they are fewer."""
        if seconds < self.seconds:
            self.earlier(self.seconds - seconds)
            self.seconds = seconds


@contextlib.contextmanager
def time_limit(seconds: float, has_body: bool = False) -> Iterator[TimeLimit]:
    """Around the making of an answer; that it takes too long, or the queue is full, becomes a RequestError."""
    try:
        with TimeLimit(seconds) as limit:
            if has_body:
                limit.body_is_here()
            yield limit
    except QueueFull:
        raise RequestError(503, FULL, COME_BACK) from None
    except TimeoutError:
        if limit.came is not None:
            raise RequestError(504, f"no answer within {limit.seconds:g} s") from None
        sentence = f"the body did not come within {seconds:g} s"
        raise RequestError(408, sentence, {"connection": "close"}) from None


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body, of at most ``limit`` bytes, compressed or not. Raises RequestError."""
    is_compressed = check_encoding(request.headers.get("content-encoding", ""))
    size, chunks = int(request.headers.get("content-length", "0")), list[bytes]()
    try:
        if size <= limit:
            size = 0
            async for chunk in request.stream():
                chunks.append(chunk)
                size += len(chunk)
                if size > limit:
                    break
    except ClientDisconnect:
        raise RequestError(499, "the client went") from None
    if size > limit:
        raise RequestError(413, f"the body is larger than {limit} bytes", {"connection": "close"})
    body = b"".join(chunks)
    return await expanded(body, limit) if is_compressed else body
