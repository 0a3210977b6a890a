"""A load generator for HTTP: closed loops of clients, and open loops of a rate.

It shares a core between all clients, so that an answer must cost it little: raw bytes, no HTTP library.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import re
import ssl
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import uvloop

Address = tuple[str, int]
CLOSED, HUNG = (
    0,
    -1,
)  # instead of a status: the server closed or refused the connection, or nothing came
PATIENCE = 30.0  # seconds after the end of a run, for answers that are still missing
CONNECTIONS = 400  # of an open loop
WARM_UP = 0.25  # of a run, before what is counted

_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: close", re.IGNORECASE)


@dataclass
class Load:
    """One run: when each request was sent, when it was answered and its status; ``began`` and ``ended`` bound what
    counts. All times are those of `time.perf_counter`."""

    began: float
    ended: float
    answers: list[tuple[float, float, int]] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """JSON-able: rates a second by what happened within the bounds, milliseconds of what was sent within them."""
        seconds = self.ended - self.began
        sent = [answer for answer in self.answers if self.began <= answer[0] < self.ended]
        came = [status for _, at, status in self.answers if self.began <= at < self.ended]
        good = [at - since for since, at, status in sent if status == 200]
        refused = [at - since for since, at, status in sent if status not in (200, CLOSED, HUNG)]
        return {
            "sent_per_second": len(sent) / seconds,
            "answered_per_second": came.count(200) / seconds,
            "refused_per_second": sum(status > 0 and status != 200 for status in came) / seconds,
            "unanswered": sum(status in (CLOSED, HUNG) for _, _, status in self.answers),
            "p50_ms": percentile(good, 50),
            "p99_ms": percentile(good, 99),
            "refused_p99_ms": percentile(refused, 99),
        }


def percentile(seconds: list[float], q: float) -> float | None:
    return float(np.percentile(seconds, q) * 1e3) if seconds else None


class Connection(asyncio.Protocol):
    """Kept open; one request at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._received = bytearray()
        self._head = self._size = 0
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body of the answer. Raises ConnectionError where the server closes instead."""
        if self.closed:
            raise ConnectionResetError
        self._answer = self._loop.create_future()
        self.transport.write(request)
        return await self._answer

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._head:
            self._head = self._received.find(b"\r\n\r\n") + 4
            if self._head < 4:
                self._head = 0
                return
            found = _LENGTH.search(self._received, 0, self._head)
            assert found is not None
            self.closed = _CLOSE.search(self._received, 0, self._head) is not None
            self._size = self._head + int(found[1])
        if len(self._received) >= self._size and self._answer is not None:
            status, body = int(self._received[9:12]), bytes(self._received[self._head : self._size])
            self._received.clear()
            self._head, answer = 0, self._answer
            self._answer = None
            if not answer.done():
                answer.set_result((status, body))

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError())


class Client:
    """Sends one request after the other, on a new connection where the last was closed."""

    def __init__(self, address: Address, request: bytes, tls: ssl.SSLContext | None = None) -> None:
        self._address, self._request, self._tls = address, request, tls
        self._connection: Connection | None = None

    async def ask(self, load: Load) -> int:
        began, status = time.perf_counter(), HUNG
        try:
            if self._connection is None or self._connection.closed:
                await self.connect()
            assert self._connection is not None
            status, _ = await self._connection.ask(self._request)
        except OSError:
            status = CLOSED
        finally:  # also where the run gave up waiting
            load.answers.append((began, time.perf_counter(), status))
        return status

    async def connect(self) -> None:
        self._connection = await connect(self._address, self._tls)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.transport.close()


async def connect(address: Address, tls: ssl.SSLContext | None = None) -> Connection:
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(Connection, *address, ssl=tls)
    return connection


async def closed_loop(
    address: Address,
    request: bytes,
    clients: int,
    seconds: float,
    pause: float = 0.0,
    tls: ssl.SSLContext | None = None,
) -> Load:
    """Clients that each send their next request when they have the answer, ``pause`` seconds later."""
    load = _load(seconds)

    async def run(client: Client) -> None:
        while time.perf_counter() < load.ended:
            is_nobody_there = await client.ask(load) == CLOSED
            if is_nobody_there or pause:
                await asyncio.sleep(max(pause, 0.01 * is_nobody_there))  # without spinning

    everyone = [Client(address, request, tls) for _ in range(clients)]
    await _finish({asyncio.create_task(run(client)) for client in everyone}, load)
    for client in everyone:
        client.close()
    return load


async def open_loop(address: Address, request: bytes, rate: float, seconds: float) -> Load:
    """Requests at random times (Poisson, seeded), whether or not earlier ones are answered, over connections that are
    kept open; where those do not suffice, over new ones."""
    idle = [Client(address, request) for _ in range(CONNECTIONS)]
    for client in idle:
        await client.connect()
    load, random = _load(seconds), np.random.default_rng(0)
    tasks: set[asyncio.Task[None]] = set()

    async def one() -> None:
        client = idle.pop() if idle else Client(address, request)
        await client.ask(load)
        idle.append(client)

    at = time.perf_counter()
    while (at := at + random.exponential(1 / rate)) < load.ended:
        await asyncio.sleep(max(0.0, at - time.perf_counter()))
        task = asyncio.create_task(one())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await _finish(tasks, load)
    for client in idle:
        client.close()
    return load


def _load(seconds: float) -> Load:
    began = time.perf_counter()
    return Load(began + WARM_UP * seconds, began + seconds)


async def _finish(tasks: set[asyncio.Task[None]], load: Load) -> None:
    """Wait for all answers, and give up those that do not come."""
    if tasks:
        left = load.ended + PATIENCE - time.perf_counter()
        _, hanging = await asyncio.wait(tasks, timeout=left)
        for task in hanging:
            task.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)


def run(load: Coroutine[Any, Any, Load]) -> Load:
    gc.collect()
    gc.freeze()  # what is there already shall not be searched while answers are timed
    return uvloop.run(load)


def post(path: str, body: bytes, **headers: object) -> bytes:
    """The bytes of a request; ``headers``: underscores stand for hyphens."""
    lines = [f"POST {path} HTTP/1.1", "Host: bench", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


DATATYPES = {"float32": "FP32", "int64": "INT64", "uint8": "UINT8"}


def infer(*inputs: np.ndarray, name: str = "m") -> bytes:
    """A request of the Open Inference Protocol, raw bytes both ways."""
    given = [
        {"name": input_name(i, inputs), "shape": x.shape, "datatype": DATATYPES[x.dtype.name]}
        | {"parameters": {"binary_data_size": x.nbytes}}
        for i, x in enumerate(inputs)
    ]
    head = json.dumps({"inputs": given, "parameters": {"binary_data_output": True}}).encode()
    body = b"".join([head, *(x.tobytes() for x in inputs)])
    return post(f"/v2/models/{name}/infer", body, Inference_Header_Content_Length=len(head))


def input_name(i: int, inputs: Sequence[np.ndarray]) -> str:
    """The name of an input, as the server calls it."""
    return "input" if len(inputs) == 1 else f"input_{i}"


def infer_by_grpc(*inputs: np.ndarray, name: str = "m") -> bytes:
    """A ModelInferRequest with raw contents."""
    message = _message_class("inference.ModelInferRequest")(model_name=name)
    for i, x in enumerate(inputs):
        message.inputs.add(
            name=input_name(i, inputs), datatype=DATATYPES[x.dtype.name], shape=x.shape
        )
        message.raw_input_contents.append(x.tobytes())
    return bytes(message.SerializeToString())


def _message_class(name: str) -> Any:
    """The class of a message of the protocol, whoever has declared it in this process: Triton has the same names."""
    from google.protobuf import descriptor_pool, message_factory

    pool = descriptor_pool.Default()
    try:
        found = pool.FindMessageTypeByName(name)
    except KeyError:
        importlib.import_module("qkernels.serve.grpc.inference_pb2")
        found = pool.FindMessageTypeByName(name)
    return message_factory.GetMessageClass(found)


def grpc_loop(address: Address, request: bytes, seconds: float) -> Load:
    """One client that sends its next request when it has the answer."""
    import grpc

    load = _load(seconds)
    with grpc.insecure_channel("{}:{}".format(*address)) as channel:
        ask = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        while (began := time.perf_counter()) < load.ended:
            ask(request)
            load.answers.append((began, time.perf_counter(), 200))
    return load
