"""Whose request a line of the log is about: its id, and the W3C trace it belongs to."""

from __future__ import annotations

import re
from collections.abc import Mapping

REQUEST_ID = "x-request-id"
_TRACE = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")


def traced(headers: Mapping[str, str], id: str | None = None) -> dict[str, str]:
    """``id``: the message's own, before that of the headers. What has not the form it must have is left out."""
    found = {}
    own = id or headers.get(REQUEST_ID, "")
    if own and len(own) <= 256:
        found["id"] = own
    trace = _TRACE.fullmatch(headers.get("traceparent", ""))
    if trace is not None and set(trace[1]) != {"0"} and set(trace[2]) != {"0"}:
        found["trace_id"], found["parent_id"] = trace[1], trace[2]
    return found


def echoed(headers: Mapping[str, str]) -> dict[str, str]:
    """The header of the answer that says which request it is of."""
    own = headers.get(REQUEST_ID, "")
    return {REQUEST_ID: own} if own.isascii() and own.isprintable() and 0 < len(own) <= 256 else {}
