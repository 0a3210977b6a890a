"""The HTTP side: routes of the Open Inference Protocol v2, limits and errors."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

import qkernels
from qkernels.image_input import ImageInput
from qkernels.serve import endpoints, forms, pictures, protocol
from qkernels.serve.batching import Batcher, Times
from qkernels.serve.config import model_config
from qkernels.serve.connections import Connections, most_connections
from qkernels.serve.door import Headers
from qkernels.serve.encodings import compressed
from qkernels.serve.endpoints import ENDPOINTS, OPEN
from qkernels.serve.errors import RequestError
from qkernels.serve.inference import Answered, counted, infer, status_of
from qkernels.serve.limits import TimeLimit, read_body, time_limit
from qkernels.serve.metrics import Metrics
from qkernels.serve.model import Model
from qkernels.serve.repository import Repository, Served, Version
from qkernels.serve.settings import Settings
from qkernels.serve.token import is_let_in
from qkernels.serve.traces import REQUEST_ID, echoed, traced

T = TypeVar("T")

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
    repository: Callable[[Settings, Metrics], Repository] = Repository,
) -> Starlette:
    """An ASGI application that loads its models when it starts; ``failed`` is told why it could not load the only one.

    ``restarts``, for the metrics: how many processes served before this one and were killed. ``repository``: what loads
    and batches instead, where that is another engine's part.
    """
    server = _Server(settings, failed, restarts, repository)
    guard = [] if settings.token is None else [Middleware(_BearerToken, token=settings.token)]
    if settings.origins:
        guard.insert(0, Middleware(CORSMiddleware, **_cors(settings.origins)))
    app = Starlette(
        routes=_routes(server),
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


def _routes(server: _Server) -> list[Route]:
    """The routes of all endpoints, in the order in which they are tried.

    Inferences come first, since there are many; and what is a name of its own before what has any name in its place.
    """
    by_path: dict[str, dict[str, Callable[[Request], Awaitable[Response]]]] = {}
    for endpoint in ENDPOINTS:
        by_path.setdefault(endpoint.path, {})[endpoint.method] = getattr(server, endpoint.name)
    routes = []
    for path in sorted(by_path, key=lambda path: (not path.endswith("/infer"), "{" in path)):
        answers = by_path[path]
        if len(answers) == 1:
            (answer,) = answers.values()
        else:
            answer = functools.partial(_by_method, answers)
        routes.append(Route(path, answer, methods=list(answers)))
    return routes


async def _by_method(
    answers: dict[str, Callable[[Request], Awaitable[Response]]], request: Request
) -> Response:
    return await answers.get(request.method, answers["GET"])(request)  # HEAD is asked as GET


def _cors(origins: tuple[str, ...]) -> dict[str, Any]:
    return {
        "allow_origins": origins,
        "allow_methods": ["GET", "POST"],
        "allow_headers": ["*"],
        "expose_headers": [protocol.JSON_LENGTH, "retry-after", REQUEST_ID],
    }


class _Server:
    def __init__(
        self,
        settings: Settings,
        failed: Callable[[BaseException], None],
        restarts: int,
        repository: Callable[[Settings, Metrics], Repository],
    ) -> None:
        self._settings, self._failed = settings, failed
        self._metrics = Metrics(restarts)
        self._nobody = Served("", self._metrics.of(""))
        self._repository = repository(settings, self._metrics)
        self._decoder = pictures.Decoder(settings.queue)

    def refuses(self, url: bytes) -> bool:
        served = self._addressed(url)
        return served is not None and served.is_full()

    def count_refused(self, url: bytes) -> None:
        (self._addressed(url) or self._nobody).metrics.answered(503)

    def _addressed(self, url: bytes) -> Served | None:
        """The model that requests at this address are for, if it is one of those that are loaded."""
        name = _addressed_name(url)
        if name is not None:
            return self._repository.get(name)
        return self._only() if url.startswith(b"/classify") else None

    def _only(self) -> Served | None:
        every = list(self._repository)
        return every[0] if len(every) == 1 else None

    def shared_headers(self, headers: Headers) -> dict[str, str]:
        origins = self._settings.origins
        if not origins:
            return {}
        origin = dict(headers).get(b"origin", b"").decode("latin-1")
        if "*" in origins:
            return {"access-control-allow-origin": "*"}
        return (
            {"access-control-allow-origin": origin, "vary": "Origin"} if origin in origins else {}
        )

    @functools.cached_property
    def connections(self) -> Connections:
        settings = self._settings
        most = most_connections()
        return Connections(self._metrics, settings.timeout, settings.keep_alive, most)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        watching = asyncio.create_task(self._repository.watch())
        watching.add_done_callback(self._watched)
        grpc = None
        if self._settings.grpc is not None:
            grpc = await self._start_grpc(*self._settings.grpc)
        yield
        watching.cancel()
        if grpc is not None:
            grpc.watching.cancel()
            await grpc.stop(self._settings.timeout)
        self._repository.close()
        self._decoder.close()

    async def _start_grpc(self, address: str, certificate: Path | None, key: Path | None) -> Any:
        from qkernels.serve import grpc  # which is not there unless it is asked for

        files = (certificate, key)
        tls = (
            [file.read_bytes() if file is not None else b"" for file in files]
            if certificate
            else None
        )
        return await grpc.start(self._settings, self._repository, self._nobody, address, tls)

    def _watched(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(error)

    async def about(self, request: Request) -> Response:
        return JSONResponse(
            {
                "name": "qkernels",
                "version": qkernels.__version__,
                "extensions": protocol.EXTENSIONS,
            }
        )

    async def live(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(self, request: Request) -> Response:
        ready = self._repository.is_ready
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    async def metrics_text(self, request: Request) -> Response:
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def metadata(self, request: Request) -> Response:
        served, _, batcher = self._asked(request)
        return JSONResponse(protocol.metadata(served.name, served.numbers(), batcher.model))

    async def model_ready(self, request: Request) -> Response:
        served, *_ = self._asked(request)
        return JSONResponse({"name": served.name, "ready": True})

    async def config(self, request: Request) -> Response:
        served, _, batcher = self._asked(request)
        return JSONResponse(model_config(served.name, served.numbers(), batcher))

    async def stats(self, request: Request) -> Response:
        path = request.path_params
        shown = self._repository.statistics(path.get("name"), path.get("version"))
        return JSONResponse({"model_stats": shown})

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(endpoints.openapi())

    async def docs(self, request: Request) -> Response:
        return Response(endpoints.page(), media_type="text/html", headers=_PAGE_HEADERS)

    async def index(self, request: Request) -> Response:
        asked = await self._message(request, protocol.IndexRequest)
        with time_limit(self._settings.timeout, has_body=True):
            return JSONResponse(await self._repository.index(bool(asked.ready)))

    async def load(self, request: Request) -> Response:
        asked = await self._message(request, protocol.LoadRequest)
        protocol.refuse_parameters(asked.parameters or {})
        with time_limit(self._settings.timeout, has_body=True):
            await self._repository.load(request.path_params["name"])
        return JSONResponse({})

    async def unload(self, request: Request) -> Response:
        await self._message(request, protocol.UnloadRequest)
        with time_limit(self._settings.timeout, has_body=True):
            await self._repository.unload(request.path_params["name"])
        return JSONResponse({})

    async def _message(self, request: Request, kind: type[T]) -> T:
        with time_limit(self._settings.timeout):
            body = await read_body(request, self._settings.max_body)
        return protocol.decode_as(kind, body or b"{}")

    async def page(self, request: Request) -> Response:
        return Response(_PAGE, media_type="text/html", headers=_PAGE_HEADERS)

    async def infer(self, request: Request) -> Response:
        return await self._counted(request, self._infer)

    async def classify(self, request: Request) -> Response:
        return await self._counted(request, self._classify)

    async def _counted(
        self, request: Request, answer: Callable[[Request, Served], Awaitable[Response]]
    ) -> Response:
        async def refuse(error: Exception) -> tuple[int, Response]:
            told = _refused if isinstance(error, RequestError) else _failed
            return status_of(error), await told(request, error)

        response = await counted(
            self._nobody,
            functools.partial(self._named, request),
            functools.partial(answer, request),
            refuse,
        )
        if REQUEST_ID in request.headers:
            response.headers.update(echoed(request.headers))
        return response

    async def _infer(self, request: Request, served: Served) -> Response:
        async def read(limit: TimeLimit, model: Model) -> protocol.Request:
            body = await read_body(request, self._settings.max_body)
            limit.body_is_here()
            return protocol.decode(body, request.headers.get(protocol.JSON_LENGTH), model)

        def encode(answered: Answered) -> tuple[bytes, dict[str, str]]:
            asked = answered.request
            if logger.isEnabledFor(logging.DEBUG):
                extra = {"rows": len(asked.inputs[0])} | traced(request.headers, asked.id)
                logger.debug("200", extra=extra)
            return protocol.encode(
                served.name, answered.version.number, answered.model, asked, answered.results
            )

        version = request.path_params.get("version")
        body, headers = await infer(served, version, read, encode)
        body, more = await compressed(body, request.headers.get("accept-encoding", ""))
        return Response(body, headers=headers | more)

    async def _classify(self, request: Request, served: Served) -> Response:
        version = served.find(None)
        batcher = version.loaded
        image_input = _image_input(batcher.model)
        with time_limit(batcher.settings.timeout) as limit:
            body = await read_body(request, self._settings.max_body)
            limit.body_is_here()
            asked = forms.asked(
                body,
                request.headers.get("content-type", ""),
                request.query_params.get("top_k"),
                batcher.model.max_batch,
            )
            began, times = time.perf_counter(), Times()
            x = [await self._decoder(picture, image_input) for picture in asked.pictures]
            decode = time.perf_counter() - began
            (logits,) = await batcher.infer([np.concatenate(x)], limit.left, times)
        seconds = {"decode": decode, "queue": times.queue, "compute": times.compute}
        found = [pictures.best(image_input, row, asked.top_k) for row in logits]
        answer: dict[str, Any] = {"model_name": served.name, "model_version": version.number}
        answer |= {"pictures": found} if asked.is_list else found[0]
        answer["milliseconds"] = {name: round(1e3 * value, 3) for name, value in seconds.items()}
        return JSONResponse(answer)

    async def classes(self, request: Request) -> Response:
        served = self._named(request)
        version = served.find(None)
        image_input = _image_input(version.loaded.model)
        return JSONResponse(
            {
                "model_name": served.name,
                "model_version": version.number,
                "classes": image_input.classes,
                "size": image_input.size,
                "max_pixels": pictures.MAX_PIXELS,
                "max_bytes": self._settings.max_body,
            }
        )

    def _named(self, request: Request) -> Served:
        """The model in the address, or the only one. Raises RequestError(404)."""
        name = request.path_params.get("name")
        if name is not None:
            return self._repository.find(name)
        if (only := self._only()) is None:
            self._repository.check_known()
            there = ", ".join(f"/classify/{served.name}" for served in self._repository)
            raise RequestError(404, f"there are several models: {there}")
        return only

    def _asked(self, request: Request) -> tuple[Served, Version, Batcher]:
        """The model and version in the address, which are compared with what is loaded and nothing else."""
        served = self._repository.find(request.path_params["name"])
        version = served.find(request.path_params.get("version"))
        return served, version, version.loaded


@functools.lru_cache(256)
def _addressed_name(url: bytes) -> str | None:
    """The name of a model in the address of an inference."""
    for base in (b"/v2/models/", b"/classify/"):
        if url.startswith(base):
            return unquote(url[len(base) :].partition(b"/")[0].decode("latin-1"))
    return None


def _image_input(model: Model) -> ImageInput:
    if model.image_input is None:
        sentence = "the model's file has no image_input: how a picture becomes an input, and what the classes are"
        raise RequestError(404, sentence)
    return model.image_input


class _BearerToken:
    """Everything but the health of the server and the page, which asks for it, needs the token."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN:
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not is_let_in(given, self._token):
                response = _error(401, "a bearer token is needed", {"www-authenticate": "Bearer"})
                return await response(scope, receive, send)
        await self._app(scope, receive, send)


def _error(status: int, sentence: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": sentence}, status, headers)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    extra = {"path": request.url.path} | traced(request.headers)
    logger.debug("%d %s", error.status, error, extra=extra)
    return _error(error.status, str(error), error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentence = f"{request.method} {request.url.path}: {error.detail}"
    return _error(error.status_code, sentence, dict(error.headers or {}))


async def _failed(request: Request, error: Exception) -> Response:
    extra = {"path": request.url.path} | traced(request.headers)
    logger.error("a request failed", exc_info=error, extra=extra)
    return _error(500, "the server failed; its log says why")
