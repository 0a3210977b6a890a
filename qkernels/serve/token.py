"""The bearer token."""

from __future__ import annotations

import hmac


def is_let_in(authorization: bytes, token: str) -> bool:
    """Whether this value of the header is the token, spelled as RFC 9110, 11.1, allows: the scheme in any case."""
    scheme, _, given = authorization.partition(b" ")
    return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), token.encode())
