"""Where requests are refused while the server is full: as soon as their headers are there.

What refusing costs is taken from the requests that are answered, and there may be many times more to refuse. An answer
of the application costs three times as much as this one, before anything is read.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

FULL, COME_BACK = "too many requests are waiting", {"retry-after": "1"}


class Inside(Protocol):
    """What is behind the door."""

    @property
    def full(self) -> bool: ...

    def count(self, status: int) -> None: ...


class _Refused:
    """In the place of a request that is answered, whose body may still come."""

    response_complete = True
    message_event = asyncio.Event()


_REFUSED = _Refused()


def _refusal(*headers: str) -> bytes:
    body = msgspec.json.encode({"error": FULL})
    lines = ["HTTP/1.1 503 Service Unavailable", *(f"{k}: {v}" for k, v in COME_BACK.items())]
    lines += ["content-type: application/json", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


_REFUSAL, _LAST_REFUSAL = _refusal(), _refusal("connection: close")


class Door(HttpToolsProtocol):
    """uvicorn's HTTP, where a POST to a full server never becomes a request; its connection stays usable."""

    def __init__(self, *args: Any, inside: Inside, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._inside = inside

    def on_headers_complete(self) -> None:
        is_next = self.cycle is None or self.cycle.response_complete  # nothing before it waits
        if not (is_next and self._inside.full and self.parser.get_method() == b"POST"):
            return super().on_headers_complete()
        self._inside.count(503)
        self.cycle: Any = _REFUSED
        is_last = self.expect_100_continue or not self.parser.should_keep_alive()
        self.transport.write(_LAST_REFUSAL if is_last else _REFUSAL)
        if self.expect_100_continue:
            self.transport.close()  # its body may come or not: nobody knows where the next request begins

    def on_message_complete(self) -> None:
        if self.cycle is not _REFUSED:
            super().on_message_complete()
        elif self.parser.should_keep_alive():
            self.on_response_complete()  # as after every answer: a connection that stays idle is closed
        else:
            self.transport.close()
