"""Every address of the server: what its routes, its OpenAPI description, its page and docs/endpoints.md are made of."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from typing import Any

import qkernels

_RAW = "head -c 256 /dev/zero | curl -s --data-binary @- -H 'Inference-Header-Content-Length: 0'"
_MODEL, _VERSION = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"


@dataclass(frozen=True)
class Endpoint:
    """``name``: of the method that answers. ``curl``: what asks it, to a server of the model "student" on port 8080."""

    method: str
    path: str
    name: str
    about: str
    curl: str
    answer: str = "application/json"
    takes: tuple[str, ...] = ()
    is_open: bool = False  # without the token


def _get(path: str, name: str, about: str, **options: Any) -> Endpoint:
    shown = path.replace("{name}", "student").replace("{version}", "1")
    return Endpoint("GET", path, name, about, f"curl -s localhost:8080{shown}", **options)


def _post(path: str, name: str, about: str, curl: str, *takes: str, **options: Any) -> Endpoint:
    shown = path.replace("{name}", "student").replace("{version}", "1")
    line = f"{curl} 'localhost:8080{shown}'" if "?" in shown else f"{curl} localhost:8080{shown}"
    return Endpoint("POST", path, name, about, line, takes=takes, **options)


_TENSORS = ("application/json", "application/octet-stream")
_PICTURES = ("image/png", "image/jpeg", "image/webp", "multipart/form-data", "application/json")
_POST = "curl -s -X POST"

ENDPOINTS = (
    _get("/v2", "about", "The server's name, version and extensions of the protocol."),
    _get("/v2/health/live", "live", "Whether it lives.", is_open=True),
    _get("/v2/health/ready", "ready", "Whether what it shall serve has been loaded.", is_open=True),
    _get("/v2/models/stats", "stats", "What all models have done."),
    _get(_MODEL, "metadata", "Inputs, outputs and versions of a model."),
    _get(_VERSION, "metadata", "The same, of a version: its number, or the checksum of its file."),
    _get(_MODEL + "/ready", "model_ready", "Whether it can be asked."),
    _get(_VERSION + "/ready", "model_ready", "Whether that version can be asked."),
    _get(_MODEL + "/config", "config", "Its largest batch, queue and time limits."),
    _get(_VERSION + "/config", "config", "Those of that version."),
    _get(_MODEL + "/stats", "stats", "How often it has been asked, and the time that took."),
    _get(_VERSION + "/stats", "stats", "The same, of that version."),
    _post(_MODEL + "/infer", "infer", "Results, of the highest version.", _RAW, *_TENSORS),
    _post(_VERSION + "/infer", "infer", "Results, of that version.", _RAW, *_TENSORS),
    _post("/v2/repository/index", "index", "What is in the repository, and its state.", _POST, "application/json"),
    _post(
        "/v2/repository/models/{name}/load", "load",
        "Load a model as its files are now, where `--control explicit` lets clients do so.", _POST, "application/json",
    ),
    _post(
        "/v2/repository/models/{name}/unload", "unload", "Let it go; what waits for it is still answered.", _POST,
        "application/json",
    ),
    _get("/classify", "classes", "Which pictures the only model takes, and its classes."),
    _get("/classify/{name}", "classes", "The same, of one of several models."),
    _post("/classify", "classify", "The class of a picture.", "curl -s --data-binary @docs/digit.png", *_PICTURES),
    _post(
        "/classify/{name}", "classify", "The classes of several pictures, three of each, by one of several models.",
        "curl -s -F a=@docs/digit.png -F b=@docs/digit.png -F top_k=3", *_PICTURES,
    ),
    _get("/metrics", "metrics_text", "Figures for Prometheus.", answer="text/plain"),
    _get("/openapi.json", "openapi", "This list, as OpenAPI 3.1.", is_open=True),
    _get("/docs", "docs", "This list, as a page.", answer="text/html", is_open=True),
    _get("/", "page", "The page to drop pictures on.", answer="text/html", is_open=True),
)  # fmt: skip
OPEN = frozenset(endpoint.path for endpoint in ENDPOINTS if endpoint.is_open)


def openapi() -> dict[str, Any]:
    """The endpoints as an OpenAPI document."""
    paths: dict[str, dict[str, Any]] = {}
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    for one in ENDPOINTS:
        operation: dict[str, Any] = {
            "summary": one.about,
            "operationId": re.sub(r"\W+", "_", f"{one.method} {one.path}".strip("/ ")).strip("_"),
            "responses": {
                "200": {"description": "The answer.", "content": {one.answer: {}}},
                "default": {"description": "Why there is none.", "content": error},
            },
            "security": [] if one.is_open else [{"token": []}],
        }
        if names := re.findall(r"{(\w+)}", one.path):
            operation["parameters"] = [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                for name in names
            ]
        if one.takes:
            operation["requestBody"] = {"content": {kind: {} for kind in one.takes}}
        paths.setdefault(one.path, {})[one.method.lower()] = operation
    sentence = {
        "type": "object",
        "required": ["error"],
        "properties": {"error": {"type": "string"}},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "qkernels serve", "version": qkernels.__version__},
        "paths": paths,
        "components": {
            "schemas": {"Error": sentence},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def page() -> str:
    """The endpoints in HTML, which loads nothing from elsewhere."""
    rows = "\n".join(
        f"<tr><td>{one.method}<td><code>{html.escape(one.path)}</code><td>{html.escape(one.about)}"
        f"<td><code>{html.escape(one.curl)}</code>"
        for one in ENDPOINTS
    )
    style = (
        "body{font:16px sans-serif;margin:2em;color-scheme:light dark}td{padding:.3em 1em .3em 0}"
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>qkernels serve</title><style>{style}</style>'
        f'<h1>qkernels serve {qkernels.__version__}</h1><p>As <a href="openapi.json">OpenAPI</a>.</p>'
        f"<table>\n{rows}\n</table></html>\n"
    )


def markdown() -> str:
    """docs/endpoints.md."""
    lines = [
        "# Addresses of the server\n",
        "Generated by `python benchmarks/make_endpoints_doc.py`; the tests run every line below, against a server of",
        "the digits' student, `qkernels serve models --control explicit --load student` of",
        "`models/student/1/model.qkp`.\n",
    ]
    for one in ENDPOINTS:
        lines += [f"## {one.method} {one.path}", f"{one.about}\n", f"    {one.curl}\n"]
    return "\n".join(lines).rstrip() + "\n"
