"""The pictures of a request to /classify: the body itself, a form, or base64 in JSON."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from python_multipart import MultipartParser
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import parse_options_header

from qkernels.serve.errors import RequestError, bad
from qkernels.serve.protocol import decode_as

TOP = 5  # classes, where nobody says how many


@dataclass(frozen=True)
class Asked:
    """``is_list``: whether the answer is a list, as it is of forms and of JSON."""

    pictures: list[bytes]
    top_k: int
    is_list: bool


class _Json(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    pictures: list[str]
    top_k: Annotated[int, msgspec.Meta(ge=1)] = TOP


def asked(body: bytes, content_type: str, top_k: str | None, most: int) -> Asked:
    """``top_k``: of the address, as text. Raises RequestError."""
    kind, options = parse_options_header(content_type)
    wanted = TOP if top_k is None else _count(top_k)
    if kind == b"multipart/form-data":
        pictures, fields = _form(body, options.get(b"boundary"))
        wanted = _count(fields["top_k"]) if "top_k" in fields else wanted
    elif kind == b"application/json":
        message = decode_as(_Json, body)
        pictures = [_from_base64(text) for text in message.pictures]
        wanted = message.top_k
    else:
        return Asked([body], wanted, is_list=False)
    if not 1 <= len(pictures) <= most:
        raise bad(f"{len(pictures)} pictures came; from 1 to {most} are taken at a time")
    return Asked(pictures, wanted, is_list=True)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text[:9]) > 0 and len(text) < 9):
        raise bad(f"top_k is {text!r}, which is no whole number from 1 on")
    return int(text)


def _from_base64(text: str) -> bytes:
    """Also with the beginning of a data URL."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad(f"a picture is no base64: {error}") from error


def _form(body: bytes, boundary: bytes | None) -> tuple[list[bytes], dict[str, str]]:
    """Its files in order, and its other fields."""
    if not boundary:
        raise RequestError(415, "the form's content-type has no boundary")
    parts: list[tuple[dict[bytes, bytes], bytearray]] = []
    name, value = bytearray(), bytearray()

    def begin() -> None:
        parts.append(({}, bytearray()))

    def header_end() -> None:
        parts[-1][0][bytes(name).lower()] = bytes(value)
        name.clear()
        value.clear()

    callbacks: Any = {
        "on_part_begin": begin,
        "on_header_field": lambda data, a, b: name.extend(data[a:b]),
        "on_header_value": lambda data, a, b: value.extend(data[a:b]),
        "on_header_end": header_end,
        "on_part_data": lambda data, a, b: parts[-1][1].extend(data[a:b]),
    }
    try:
        parser = MultipartParser(boundary, callbacks)
        parser.write(body)
        parser.finalize()
    except MultipartParseError as error:
        raise bad(f"the form is damaged: {error}") from error
    pictures: list[bytes] = []
    fields: dict[str, str] = {}
    for headers, data in parts:
        _, options = parse_options_header(headers.get(b"content-disposition", b""))
        if b"filename" in options or b"content-type" in headers:
            pictures.append(bytes(data))
        else:
            fields[options.get(b"name", b"").decode("latin-1")] = bytes(data[:20]).decode("latin-1")
    if unknown := fields.keys() - {"top_k"}:
        raise bad(f"the form has a field {min(unknown)!r}; files and top_k are taken")
    return pictures, fields
