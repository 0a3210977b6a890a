"""What a request is answered instead of results."""

from __future__ import annotations

COME_BACK = {"retry-after": "1"}


class RequestError(Exception):
    """An answer other than 200, with the sentence that goes out."""

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.headers = status, headers or {}


def bad(sentence: str) -> RequestError:
    return RequestError(400, sentence)
