"""What happens to a connection before there is a request.

There are limits on all that is read before a body, refusals while the server is full, and errors that are no request's.

What refusing costs is taken from the requests that are answered, and there may be many times more to refuse. An answer
of the application costs three times as much as one from here, before anything is read.
"""

from __future__ import annotations

import asyncio
import functools
import math
import re
import socket
import struct
from typing import Any, Protocol

import httptools
import msgspec
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from qkernels.serve.connections import Connections
from qkernels.serve.errors import COME_BACK

FULL = "too many requests are waiting"
MAX_HEAD = (
    64 << 10
)  # bytes until the headers are complete; of trailers and of what frames chunks as well
MAX_URL = 8 << 10
MAX_HEADERS = 256
_PIECE_OF_HEADS, _PIECE_OF_BODY = (
    16 << 10,
    64 << 10,
)  # bytes that are parsed before it is seen what they were
_MOST_THROWN = 256 << 20  # bytes that are still read behind the last answer

_MOST_PLAIN = 4 << 10  # bytes of a head that is refused without being parsed

# A head that llhttp would take, of a POST; and what in it the door leaves to the parser.
_PLAIN_POST = re.compile(
    rb"POST (/[!-~]{,2048}) HTTP/1\.1\r\n(?:[A-Za-z0-9-]+:[^\r\n\0]*\r\n){1,64}\r\n"
)
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,9})[ \t]*\r\n", re.IGNORECASE)
_TELLING = re.compile(
    rb"\r\n(?:connection|transfer-encoding|expect|upgrade|origin):", re.IGNORECASE
)

Headers = list[tuple[bytes, bytes]]


class Inside(Protocol):
    """What is behind the door."""

    connections: Connections

    def refuses(self, url: bytes) -> bool:
        """Whether one more request for results at this address is one too many."""

    def count_refused(self, url: bytes) -> None: ...

    def shared_headers(self, headers: Headers) -> dict[str, str]:
        """What an answer to a request with these headers has to say, whatever it is."""


class _Refused:
    """Stands for a request that is answered, whose body may still come."""

    response_complete = True
    keep_alive = True
    message_event = asyncio.Event()


_REFUSED = _Refused()


class _Last:
    """A transport that closes after the client has read the last answer.

    Where its body is still on the way, closing at once would be a reset, which takes the answer with it.
    """

    def __init__(self, transport: Any, door: Door) -> None:
        self._transport = transport
        self._door: Door | None = door
        self.pause_reading, self.get_extra_info = (
            transport.pause_reading,
            transport.get_extra_info,
        )
        self.resume_reading = transport.resume_reading
        self._is_over = False

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():  # uvloop raises instead of throwing it away
            self._transport.write(data)

    def abort(self) -> None:
        """Ends with a reset: the system would keep what the client does not read, and the client would not notice."""
        self._transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._is_over or bool(self._transport.is_closing())

    def forget(self) -> None:
        """The door, which holds this: what ends shall not wait for the garbage collector."""
        self._door = None

    def close(self) -> None:
        if self._door is None:
            return
        if self._is_over or not self._door.is_in_body or self._transport.is_closing():
            self._transport.close()
            if self._transport.get_write_buffer_size():
                self._door.pause_writing()  # it closes when all is read, which may be never
            return
        self._is_over = True
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._door.throw_away()


class _Flow(FlowControl):
    """Reading goes on when what has been read is answered: else one connection could pile up requests."""

    def __init__(self, transport: Any, door: Door) -> None:
        super().__init__(transport)
        self._door = door

    def resume_reading(self) -> None:
        if not self._door.is_behind:
            super().resume_reading()


class Door(HttpToolsProtocol):
    """uvicorn's HTTP, where a POST to a full server never becomes a request; its connection stays usable."""

    def __init__(self, *args: Any, inside: Inside, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._inside, self._connections = inside, inside.connections
        self._quiet = 0  # bytes since a request began or its body went on
        self._is_in_head = True
        self._sentence: tuple[int, str] | None = None  # why a callback stopped the parser
        self._thrown: int | None = None  # bytes behind the last answer
        self._held = memoryview(b"")  # what waits until the requests before it are answered
        self._reads_since = self._writes_since = math.inf  # and has not come to an end
        self.is_new = True

    @property
    def is_in_body(self) -> bool:
        return not self._is_in_head

    @property
    def is_behind(self) -> bool:
        return bool(self.pipeline or self._held)

    @property
    def waits_since(self) -> float:
        """Since when for bytes of a request, or for its client to read."""
        return min(self._reads_since, self._writes_since)

    def connection_made(self, transport: Any) -> None:
        super().connection_made(_Last(transport, self))  # type: ignore[arg-type]
        self.flow = _Flow(self.transport, self)
        if not self._connections.admit(self):
            self._answer(503, "too many connections are open", COME_BACK)
            self._is_in_head = False  # what it asks is not read
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._connections.forget(self)
        super().connection_lost(error)
        self.transport.forget()  # type: ignore[attr-defined]
        self.pipeline.clear()
        self.cycle = self.flow = None  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if self._thrown is not None:
            self._thrown += len(data)
            if self._thrown > _MOST_THROWN:
                self.transport.abort()
            return
        if self._connections.is_refusing and self._refuse_unread(data):
            return
        self._connections.wake(self)
        if self.is_behind:
            self._held = memoryview(bytes(self._held) + data)
        else:
            self._parse(memoryview(data))

    def _refuse_unread(self, data: bytes) -> bool:
        """Refuse a request that has come as a whole and says nothing about its connection, without parsing it."""
        is_fresh = self._is_in_head and not self._quiet and not self.is_behind
        if not (is_fresh and (self.cycle is None or self.cycle.response_complete)):
            return False
        end = data.find(b"\r\n\r\n", 0, _MOST_PLAIN) + 4
        plain = _plain_post(data[:end]) if end > 3 else None
        if plain is None or self.transport.is_closing():
            return False
        url, length = plain
        if len(data) != end + length or not self._inside.refuses(url):
            return False
        self._inside.count_refused(url)
        if self._refuse(is_last=False):
            self.transport.close()
        else:
            self.is_new = False
            self._connections.wake(self)
            self._connections.rest(self)
        return True

    def _refuse(self, is_last: bool) -> bool:
        """Write that the server is full; whether that was the last answer."""
        shared = self._inside.shared_headers(self.headers or [])
        if shared:
            return self._answer(503, FULL, COME_BACK, is_last)
        headers = self.server_state.default_headers
        refusals = self._connections.refusals
        if refusals.headers is not headers:  # a second is over
            refusals.headers = headers
            refusals.written = {
                last: self._answered(503, FULL, COME_BACK, last) for last in (False, True)
            }
        answer, is_last = refusals.written[is_last]
        self.transport.write(answer)
        return is_last

    def _parse(self, data: memoryview) -> None:
        if self._is_in_head and self._reads_since == math.inf:
            self._reads_since = self.loop.time()
        try:
            while data and not self.pipeline and self._thrown is None:
                size = _PIECE_OF_HEADS if self._is_in_head else _PIECE_OF_BODY
                piece, data = data[:size], data[size:]
                self._feed(piece)
            self._held = data
            if data:
                self.flow.pause_reading()
        except httptools.HttpParserUpgrade:  # there is nothing else to speak here
            if self.cycle is not None and not self.cycle.response_complete:
                self.cycle.keep_alive = False  # the parser reads no further
            else:
                self.transport.close()
        except httptools.HttpParserError as error:
            self._stop(*(self._sentence or (400, f"this is no HTTP request: {error}")))

    def _feed(self, data: memoryview) -> None:
        self._quiet += len(data)
        self.parser.feed_data(data)
        if self._quiet > MAX_HEAD:
            self._sentence = 431, f"the headers are larger than {MAX_HEAD} bytes"
            raise httptools.HttpParserError

    def _stop(self, status: int, sentence: str) -> None:
        """The last answer, of this connection, to what is no request; none where the one before has not got its own."""
        is_waiting = self.cycle is not None and not self.cycle.response_complete
        if is_waiting and self._is_in_head:
            self.cycle.keep_alive = False
            self.throw_away()
            return
        if is_waiting:  # its own body is what is wrong
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started:
                self.transport.abort()
                return
        self._answer(status, sentence)
        self._is_in_head = False  # whatever follows is thrown away
        self.transport.close()

    def throw_away(self) -> None:
        """All that still comes; for `timeout` seconds at most."""
        self._thrown, self._reads_since = 0, self.loop.time()
        self._held = memoryview(b"")
        self.flow.resume_reading()

    def give_up(self) -> None:
        """The time is up for its headers, for its client to read, or for what follows the last answer."""
        is_reading = self._is_in_head and self._reads_since <= self._writes_since
        self._reads_since = self._writes_since = math.inf
        if is_reading and self._thrown is None and not self.transport.is_closing():
            self._stop(408, "the headers did not come in time")
        else:
            self.transport.abort()

    def pause_writing(self) -> None:
        self._writes_since = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._writes_since = math.inf
        super().resume_writing()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MAX_URL:
            self._sentence = 414, f"the address is longer than {MAX_URL} bytes"
            raise ValueError

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if len(self.headers) > MAX_HEADERS:
            self._sentence = 431, f"there are more than {MAX_HEADERS} headers"
            raise ValueError

    def on_headers_complete(self) -> None:
        self._quiet, self._is_in_head, self.is_new = 0, False, False
        self._reads_since = math.inf
        if self.parser.should_upgrade() and _has_body(self.headers):
            self._sentence = 400, "a request with a body cannot upgrade its connection here"
            raise ValueError
        is_next = self.cycle is None or self.cycle.response_complete  # nothing before it waits
        is_post = is_next and self.parser.get_method() == b"POST"
        self._connections.is_refusing = is_post and self._inside.refuses(self.url)
        if not self._connections.is_refusing:
            return super().on_headers_complete()
        self._inside.count_refused(self.url)
        self.cycle: Any = _REFUSED
        is_last = (
            self.expect_100_continue  # its body may come or not: nobody knows where the next request begins
            or self.parser.get_http_version() == "1.0"
            or not self.parser.should_keep_alive()
        )
        self._is_last = self._refuse(is_last)
        if self.expect_100_continue:
            self.transport.close()

    def on_body(self, body: bytes) -> None:
        self._quiet = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._quiet, self._is_in_head = 0, True
        if self.cycle is not _REFUSED:
            super().on_message_complete()
            if self.cycle.response_complete:  # it was answered before its body came
                self._rest()
        elif self._is_last:
            self.transport.close()
        else:
            self.on_response_complete()

    def on_response_complete(self) -> None:
        """Does what uvicorn's does, without a timer for each answer."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._held:
            self.loop.call_soon(self._go_on)
        elif self._is_in_head:
            self._rest()
        else:  # the rest of its body has as long as headers have
            self._reads_since = self.loop.time()

        self.flow.resume_reading()

    def _go_on(self) -> None:
        held, self._held = self._held, memoryview(b"")
        if not self.transport.is_closing():
            self._parse(held)
            self.flow.resume_reading()

    def _rest(self) -> None:
        if not self.transport.is_closing():
            self._reads_since = math.inf
            self._connections.rest(self)

    def _answer(
        self, status: int, sentence: str, more: dict[str, str] | None = None, is_last: bool = True
    ) -> bool:
        """Write an answer; whether it is the last one, as all are while the server ends."""
        answer, is_last = self._answered(status, sentence, more, is_last)
        self.transport.write(answer)
        return is_last

    def _answered(
        self, status: int, sentence: str, more: dict[str, str] | None, is_last: bool
    ) -> tuple[bytes, bool]:
        body = msgspec.json.encode({"error": sentence})
        shared = self._inside.shared_headers(self.headers or [])
        lines = [b"%s: %s\r\n" % header for header in self.server_state.default_headers]
        lines += [f"{k}: {v}\r\n".encode() for k, v in ((more or {}) | shared).items()]
        is_ending = b"connection: close\r\n" in lines
        if is_last and not is_ending:
            lines.append(b"connection: close\r\n")
        rest = b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        return b"".join((STATUS_LINE[status], *lines, rest, body)), is_last or is_ending


@functools.lru_cache(64)  # clients send the same headers again and again
def _plain_post(head: bytes) -> tuple[bytes, int] | None:
    """The address and the length of the body of a POST that says nothing about its connection; None: of another one."""
    found, lengths = _PLAIN_POST.fullmatch(head), _LENGTH.findall(head)
    if found is None or len(lengths) != 1 or _TELLING.search(head):
        return None
    return found[1], int(lengths[0])


def _has_body(headers: Headers) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip() != b"0")
        for name, value in headers
    )
