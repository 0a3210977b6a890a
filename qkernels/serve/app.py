"""The HTTP side: routes of the Open Inference Protocol v2, limits and errors."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

import qkernels
from qkernels.image_input import ImageInput
from qkernels.serve import pictures, protocol
from qkernels.serve.batching import Batcher, Times
from qkernels.serve.connections import Connections, most_connections
from qkernels.serve.current import CurrentModel
from qkernels.serve.door import COME_BACK, Headers
from qkernels.serve.errors import RequestError
from qkernels.serve.limits import read_body, time_limit
from qkernels.serve.metrics import Metrics
from qkernels.serve.model import Model
from qkernels.serve.settings import Settings

logger = logging.getLogger("qkernels.serve")

_PAGE = Path(__file__).with_name("page.html").read_bytes()
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


def _log_failure(error: BaseException) -> None:
    logger.error("the model cannot be served: %s", error)


def application(
    settings: Settings,
    failed: Callable[[BaseException], None] = _log_failure,
    restarts: int = 0,
    current: CurrentModel | None = None,
) -> Starlette:
    """An ASGI application that loads the model when it starts; ``failed`` is told why it could not.

    ``restarts``, for the metrics: how many processes served before this one and were killed. ``current``: who loads and
    batches instead, where that is another engine's part.
    """
    server = _Server(settings, failed, restarts, current)
    model = "/v2/models/{name}"
    routes = [
        route
        for base in (model, model + "/versions/{version}")
        for route in (
            Route(base + "/infer", server.infer, methods=["POST"]),
            Route(base + "/ready", server.model_ready),
            Route(base, server.metadata),
        )
    ]
    routes += [
        Route("/v2", server.about),
        Route("/v2/health/live", server.live),
        Route("/v2/health/ready", server.ready),
        Route("/metrics", server.metrics_text),
        Route("/classify", server.classify, methods=["GET", "POST"]),
        Route("/", server.page),
    ]
    token = settings.token
    guard = [] if token is None else [Middleware(_BearerToken, token=token)]
    app = Starlette(
        routes=routes,
        middleware=guard,
        lifespan=server.lifespan,
        exception_handlers={
            RequestError: _refused,
            HTTPException: _http_error,
            Exception: _failed,
        },
    )
    app.router.redirect_slashes = False  # an address is right or 404
    app.state.inside = server  # for a door in front
    return app


class _Server:
    def __init__(
        self,
        settings: Settings,
        failed: Callable[[BaseException], None],
        restarts: int,
        current: CurrentModel | None,
    ) -> None:
        self._settings, self._failed = settings, failed
        self._metrics = Metrics(restarts)
        self._current = current or CurrentModel(settings, self._metrics)
        self._decoder = pictures.Decoder(settings.queue)
        self._inside = 0  # requests for results that have no answer yet
        self._most = settings.queue + settings.workers * settings.max_batch
        self._metrics.in_flight.set_function(lambda: self._inside)

    def refuses(self, url: bytes) -> bool:
        """Whether one more request for results is one too many: as many are inside, waiting or still being read, as
        the queue and the workers hold, or as many rows wait as may."""
        batcher = self._current.batcher
        return self._inside >= self._most or (batcher is not None and batcher.full)

    def count_refused(self, url: bytes) -> None:
        self._count(503)

    def shared_headers(self, headers: Headers) -> dict[str, str]:
        return {}

    @functools.cached_property
    def connections(self) -> Connections:
        settings = self._settings
        most = most_connections()
        return Connections(self._metrics, settings.timeout, settings.keep_alive, most)

    def _count(self, status: int) -> None:
        self._metrics.requests.labels(status).inc()

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        watching = asyncio.create_task(self._current.watch())
        watching.add_done_callback(self._watched)
        yield
        watching.cancel()
        self._current.close()
        self._decoder.close()

    def _watched(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(error)

    async def about(self, request: Request) -> Response:
        return JSONResponse(
            {
                "name": "qkernels",
                "version": qkernels.__version__,
                "extensions": ["binary_tensor_data", "classification"],
            }
        )

    async def live(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(self, request: Request) -> Response:
        ready = self._current.batcher is not None
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    async def metrics_text(self, request: Request) -> Response:
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def metadata(self, request: Request) -> Response:
        return JSONResponse(self._metadata(self._batcher(request).model))

    def _metadata(self, model: Model) -> dict[str, Any]:
        return protocol.metadata(self._settings.name, [model.version], model)

    async def model_ready(self, request: Request) -> Response:
        self._batcher(request)
        return JSONResponse({"name": self._settings.name, "ready": True})

    async def page(self, request: Request) -> Response:
        return Response(_PAGE, media_type="text/html", headers=_PAGE_HEADERS)

    async def classes(self, request: Request) -> Response:
        model = self._loaded().model
        image_input = _image_input(model)
        return JSONResponse(
            {
                "model_name": self._settings.name,
                "model_version": model.version,
                "classes": image_input.classes,
                "size": image_input.size,
                "max_pixels": pictures.MAX_PIXELS,
                "max_bytes": self._settings.max_body,
            }
        )

    async def infer(self, request: Request) -> Response:
        return await self._counted(request, self._infer)

    async def classify(self, request: Request) -> Response:
        if request.method != "POST":
            return await self.classes(request)
        return await self._counted(request, self._classify)

    async def _counted(
        self, request: Request, answer: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        self._inside += 1
        try:
            with self._metrics.request_seconds.time():
                response = await answer(request)
        except RequestError as error:
            response = await _refused(request, error)
        except Exception as error:
            response = await _failed(request, error)
        finally:
            self._inside -= 1
        self._count(response.status_code)
        return response

    async def _infer(self, request: Request) -> Response:
        batcher = self._batcher(request)
        with time_limit(self._settings.timeout) as limit:
            body = await read_body(request, self._settings.max_body)
            limit.body_came = True
            asked = protocol.decode(body, request.headers.get(protocol.JSON_LENGTH), batcher.model)
            self._compare(asked.model_name, asked.model_version, batcher.model)
            if asked.timeout is not None:
                limit.shorten(asked.timeout)
            results = await batcher.infer(asked.inputs, limit.left)
        answer, headers = protocol.encode(
            self._settings.name, batcher.model.version, batcher.model, asked, results
        )
        logger.debug("200", extra={"rows": len(asked.inputs[0]), "id": asked.id})
        return Response(answer, headers=headers)

    async def _classify(self, request: Request) -> Response:
        batcher, times = self._loaded(), Times()
        model, image_input = batcher.model, _image_input(batcher.model)
        with time_limit(self._settings.timeout) as limit:
            body = await read_body(request, self._settings.max_body)
            limit.body_came = True
            began = time.perf_counter()
            x = await self._decoder(body, image_input)
            decode = time.perf_counter() - began
            (logits,) = await batcher.infer([x], limit.left, times)
        answer = pictures.answer(self._settings.name, model.version, image_input, logits[0])
        seconds = {"decode": decode, "queue": times.queue, "compute": times.compute}
        answer["milliseconds"] = {name: round(1e3 * value, 3) for name, value in seconds.items()}
        return JSONResponse(answer)

    def _loaded(self) -> Batcher:
        batcher = self._current.batcher
        if batcher is None:
            raise RequestError(503, f"model {self._settings.name!r} is being loaded", COME_BACK)
        return batcher

    def _batcher(self, request: Request) -> Batcher:
        """Of the model and version in the address, which are compared with what is loaded and nothing else."""
        name, version = request.path_params["name"], request.path_params.get("version")
        self._compare(name, None, None)
        batcher = self._loaded()
        self._compare(name, version, batcher.model)
        return batcher

    def _compare(self, name: str | None, version: str | None, model: Model | None) -> None:
        if name is not None and name != self._settings.name:
            raise RequestError(404, f"there is no model {name!r}; this is {self._settings.name!r}")
        if model is not None and version is not None and version != model.version:
            raise RequestError(404, f"there is no version {version!r}; it is {model.version!r}")


def _image_input(model: Model) -> ImageInput:
    if model.image_input is None:
        sentence = "the model's file has no image_input: how a picture becomes an input, and what the classes are"
        raise RequestError(404, sentence)
    return model.image_input


class _BearerToken:
    """Everything but the health of the server and the page, which asks for it, needs the token."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._expected = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_open(scope["path"]):
            scheme, _, given = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
            is_bearer = scheme.lower() == b"bearer"  # RFC 9110, 11.1: in any case
            if not (is_bearer and hmac.compare_digest(given.strip(), self._expected)):
                response = _error(401, "a bearer token is needed", {"www-authenticate": "Bearer"})
                return await response(scope, receive, send)
        await self._app(scope, receive, send)


def _is_open(path: str) -> bool:
    return path == "/" or path.startswith("/v2/health/")


def _error(status: int, sentence: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": sentence}, status, headers)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    logger.debug("%d %s", error.status, error, extra={"path": request.url.path})
    return _error(error.status, str(error), error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentence = f"{request.method} {request.url.path}: {error.detail}"
    return _error(error.status_code, sentence, dict(error.headers or {}))


async def _failed(request: Request, error: Exception) -> Response:
    logger.error("a request failed", exc_info=error, extra={"path": request.url.path})
    return _error(500, "the server failed; its log says why")
