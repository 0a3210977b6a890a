"""The HTTP side: routes of the Open Inference Protocol v2, limits and errors."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
from collections.abc import AsyncIterator, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

import qkernels
from qkernels.serve import protocol
from qkernels.serve.batching import Batcher, QueueFull
from qkernels.serve.current import CurrentModel
from qkernels.serve.deadline import Deadline
from qkernels.serve.door import COME_BACK, FULL
from qkernels.serve.metrics import Metrics
from qkernels.serve.protocol import RequestError
from qkernels.serve.settings import Settings

logger = logging.getLogger("qkernels.serve")


def _log_failure(error: BaseException) -> None:
    logger.error("the model cannot be served: %s", error)


def application(
    settings: Settings,
    failed: Callable[[BaseException], None] = _log_failure,
    restarts: int = 0,
) -> Starlette:
    """An ASGI application that loads the model when it starts; ``failed`` is told why it could not.

    ``restarts``, for the metrics: how many processes served before this one and were killed.
    """
    server = _Server(settings, failed, restarts)
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
        self, settings: Settings, failed: Callable[[BaseException], None], restarts: int
    ) -> None:
        self._settings, self._failed = settings, failed
        self._metrics = Metrics(restarts)
        self._current = CurrentModel(settings, self._metrics)
        self._inside = 0  # requests for results that have no answer yet
        self._most = settings.queue + settings.workers * settings.max_batch
        self._metrics.in_flight.set_function(lambda: self._inside)

    @property
    def full(self) -> bool:
        """Whether one more request for results is one too many: as many are inside, waiting or still being read, as
        the queue and the workers hold, or as many rows wait as may."""
        batcher = self._current.batcher
        return self._inside >= self._most or (batcher is not None and batcher.full)

    def count(self, status: int) -> None:
        self._metrics.requests.labels(status).inc()

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        watching = asyncio.create_task(self._current.watch())
        watching.add_done_callback(self._watched)
        yield
        watching.cancel()
        self._current.close()

    def _watched(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(error)

    async def about(self, request: Request) -> Response:
        return JSONResponse(
            {
                "name": "qkernels",
                "version": qkernels.__version__,
                "extensions": ["binary_tensor_data"],
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
        return JSONResponse(protocol.metadata(self._settings.name, self._batcher(request).model))

    async def model_ready(self, request: Request) -> Response:
        self._batcher(request)
        return JSONResponse({"name": self._settings.name, "ready": True})

    async def infer(self, request: Request) -> Response:
        self._inside += 1
        try:
            with self._metrics.request_seconds.time():
                response = await self._answer(request)
        except RequestError as error:
            response = await _refused(request, error)
        except Exception as error:
            response = await _failed(request, error)
        finally:
            self._inside -= 1
        self.count(response.status_code)
        return response

    async def _answer(self, request: Request) -> Response:
        """Within the time that the server and the request allow."""
        batcher, limit = self._batcher(request), self._settings.timeout
        came = False
        try:
            with Deadline(limit) as deadline:
                body = await _body(request, self._settings.max_body)
                came = True
                asked = protocol.decode(
                    body, request.headers.get(protocol.JSON_LENGTH), batcher.model
                )
                if asked.timeout is not None and asked.timeout < limit:
                    deadline.earlier(limit - asked.timeout)
                    limit = asked.timeout
                results = await batcher.infer(asked.inputs, deadline.left)
        except QueueFull:
            raise RequestError(503, FULL, COME_BACK) from None
        except TimeoutError:
            if came:
                raise RequestError(504, f"no answer within {limit:g} s") from None
            sentence = f"the body did not come within {limit:g} s"
            raise RequestError(408, sentence, {"connection": "close"}) from None
        answer, headers = protocol.encode(self._settings.name, batcher.model, asked, results)
        logger.debug("200", extra={"rows": len(asked.inputs[0]), "id": asked.id})
        return Response(answer, headers=headers)

    def _batcher(self, request: Request) -> Batcher:
        """Of the model and version in the address, which are compared with what is loaded and nothing else."""
        name, version = request.path_params["name"], request.path_params.get("version")
        if name != self._settings.name:
            raise RequestError(404, f"there is no model {name!r}; this is {self._settings.name!r}")
        batcher = self._current.batcher
        if batcher is None:
            raise RequestError(503, f"model {name!r} is being loaded", COME_BACK)
        if version is not None and version != batcher.model.version:
            raise RequestError(
                404, f"there is no version {version!r}; it is {batcher.model.version!r}"
            )
        return batcher


async def _body(request: Request, limit: int) -> bytes:
    if encoding := request.headers.get("content-encoding"):
        raise RequestError(415, f"content-encoding {encoding!r} is not taken")
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
    return b"".join(chunks)


class _BearerToken:
    """Everything but the health of the server needs the token."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._expected = app, b"Bearer " + token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not scope["path"].startswith("/v2/health/"):
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                response = _error(401, "a bearer token is needed", {"www-authenticate": "Bearer"})
                return await response(scope, receive, send)
        await self._app(scope, receive, send)


def _error(status: int, sentence: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": sentence}, status, headers)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    logger.debug("%d %s", error.status, error, extra={"path": request.url.path})
    return _error(error.status, str(error), error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, f"{request.method} {request.url.path}: {error.detail}")


async def _failed(request: Request, error: Exception) -> Response:
    logger.error("a request failed", exc_info=error, extra={"path": request.url.path})
    return _error(500, "the server failed; its log says why")
