"""GRPCInferenceService of inference.proto, with gRPC's own health and reflection services."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf import json_format
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

import qkernels
from qkernels.serve import protocol
from qkernels.serve.config import model_config
from qkernels.serve.door import FULL
from qkernels.serve.errors import COME_BACK, RequestError
from qkernels.serve.grpc import inference_pb2 as pb
from qkernels.serve.grpc import messages
from qkernels.serve.inference import Answered, counted, infer, status_of
from qkernels.serve.limits import TimeLimit, time_limit
from qkernels.serve.model import Model
from qkernels.serve.repository import Repository, Served
from qkernels.serve.settings import Settings
from qkernels.serve.token import is_let_in
from qkernels.serve.traces import traced

logger = logging.getLogger("qkernels.serve")

_SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
_OPEN = ("ServerLive", "ServerReady")  # without the token
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_FRAME = 64 << 10  # bytes of a message beside its tensors
_STREAMS = 256  # calls at a time on one connection
_HEALTH_EVERY = 0.5

Context = Any  # grpc.aio.ServicerContext
Method = Callable[[Any, Context], Awaitable[Any]]


async def start(
    settings: Settings, repository: Repository, nobody: Served, address: str, tls: Any = None
) -> grpc.aio.Server:
    """Listen on ``address``; ``nobody`` counts requests for no model, ``tls``: (certificate, key) as bytes.

    Raises OSError.
    """
    milliseconds = {"handshake": settings.timeout, "idle": settings.keep_alive}
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", settings.max_body + _FRAME),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_concurrent_streams", _STREAMS),
            ("grpc.server_handshake_timeout_ms", int(1e3 * milliseconds["handshake"])),
            ("grpc.max_connection_idle_ms", int(1e3 * milliseconds["idle"])),
        ]
    )
    service = _Service(settings, repository, nobody)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(_SERVICE.full_name, service.handlers()),)
    )
    healthy = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    names = (_SERVICE.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    try:
        if tls is None:
            server.add_insecure_port(address)
        else:
            certificate, key = tls
            credentials = grpc.ssl_server_credentials([(key, certificate)])
            server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise OSError(f"{address}: gRPC cannot listen there: {error}") from error
    await server.start()
    server.watching = asyncio.create_task(_watch(healthy, repository))
    return server


async def _watch(healthy: Any, repository: Repository) -> None:
    """Tell the health service what is ready."""
    statuses = health_pb2.HealthCheckResponse
    said: dict[str, int] = {}
    while True:
        ready = {"", _SERVICE.full_name} if repository.is_ready else set()
        ready |= {served.name for served in repository if served.latest is not None}
        now = {
            name: statuses.SERVING if name in ready else statuses.NOT_SERVING
            for name in said.keys() | ready | {"", _SERVICE.full_name}
        }
        for name in now.keys() - {name for name in said if said[name] == now[name]}:
            await healthy.set(name, now[name])
        said = now
        await asyncio.sleep(_HEALTH_EVERY)


class _Service:
    """A method for each of the service's, by its name."""

    def __init__(self, settings: Settings, repository: Repository, nobody: Served) -> None:
        self._settings, self._repository, self._nobody = settings, repository, nobody

    def handlers(self) -> dict[str, grpc.RpcMethodHandler]:
        made = {}
        for method in _SERVICE.methods:
            read = getattr(pb, method.input_type.name).FromString
            answer = getattr(pb, method.output_type.name).SerializeToString
            run = getattr(self, method.name)
            if method.client_streaming:
                made[method.name] = grpc.stream_stream_rpc_method_handler(run, read, answer)
            else:
                run = functools.partial(self._answered, method.name, run)
                made[method.name] = grpc.unary_unary_rpc_method_handler(run, read, answer)
        return made

    async def _answered(self, name: str, method: Method, message: Any, context: Context) -> Any:
        """The answer, with gRPC's status for what is refused."""
        try:
            if name not in _OPEN:
                self._let_in(context)
            return await method(message, context)
        except RequestError as error:
            extra = {"path": name} | _traced(message, context)
            logger.debug("%d %s", error.status, error, extra=extra)
            if error.headers is COME_BACK:
                context.set_trailing_metadata((("grpc-retry-pushback-ms", "1000"),))
            code = _CODES.get(error.status, grpc.StatusCode.UNKNOWN)
            await context.abort(code, str(error))

    def _let_in(self, context: Context) -> None:
        if self._settings.token is None:
            return
        given = dict(context.invocation_metadata() or ()).get("authorization", "")
        if not is_let_in(str(given).encode(), self._settings.token):
            raise RequestError(401, "a bearer token is needed")

    async def ServerLive(self, message: Any, context: Context) -> Any:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, message: Any, context: Context) -> Any:
        return pb.ServerReadyResponse(ready=self._repository.is_ready)

    async def ModelReady(self, message: Any, context: Context) -> Any:
        try:
            self._repository.find(message.name).find(message.version or None)
        except RequestError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def ServerMetadata(self, message: Any, context: Context) -> Any:
        return pb.ServerMetadataResponse(
            name="qkernels", version=qkernels.__version__, extensions=protocol.EXTENSIONS
        )

    async def ModelMetadata(self, message: Any, context: Context) -> Any:
        served = self._repository.find(message.name)
        model = served.find(message.version or None).loaded.model
        shown = protocol.metadata(served.name, served.numbers(), model)
        return json_format.ParseDict(shown, pb.ModelMetadataResponse())

    async def ModelConfig(self, message: Any, context: Context) -> Any:
        served = self._repository.find(message.name)
        batcher = served.find(message.version or None).loaded
        shown = model_config(served.name, served.numbers(), batcher)
        return json_format.ParseDict({"config": shown}, pb.ModelConfigResponse())

    async def ModelStatistics(self, message: Any, context: Context) -> Any:
        shown = self._repository.statistics(message.name or None, message.version or None)
        return json_format.ParseDict({"model_stats": shown}, pb.ModelStatisticsResponse())

    async def RepositoryIndex(self, message: Any, context: Context) -> Any:
        with time_limit(self._settings.timeout, has_body=True):
            rows = await self._repository.index(message.ready)
        return json_format.ParseDict({"models": rows}, pb.RepositoryIndexResponse())

    async def RepositoryModelLoad(self, message: Any, context: Context) -> Any:
        protocol.refuse_parameters(message.parameters)
        with time_limit(self._settings.timeout, has_body=True):
            await self._repository.load(message.model_name)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, message: Any, context: Context) -> Any:
        with time_limit(self._settings.timeout, has_body=True):
            await self._repository.unload(message.model_name)
        return pb.RepositoryModelUnloadResponse()

    async def ModelInfer(self, message: Any, context: Context) -> Any:
        """Raises RequestError."""

        async def refuse(error: Exception) -> tuple[int, Any]:
            if not isinstance(error, RequestError):
                extra = {"path": "ModelInfer"} | _traced(message, context)
                logger.error("a request failed", exc_info=error, extra=extra)
                error = RequestError(500, "the server failed; its log says why")
            return status_of(error), error

        answered = await counted(
            self._nobody,
            lambda: self._repository.find(message.model_name),
            functools.partial(self._infer, message, context),
            refuse,
        )
        if isinstance(answered, RequestError):
            raise answered
        return answered

    async def _infer(self, message: Any, context: Context, served: Served) -> Any:
        if served.is_full():
            raise RequestError(503, FULL, COME_BACK)

        async def read(limit: TimeLimit, model: Model) -> protocol.Request:
            limit.body_is_here()
            left = context.time_remaining()
            if left is not None:
                limit.shorten(max(left, 0.001))
            return messages.decode(message, model)

        def encode(answered: Answered) -> Any:
            if logger.isEnabledFor(logging.DEBUG):
                extra: dict[str, Any] = {"rows": len(answered.request.inputs[0])}
                logger.debug("200", extra=extra | _traced(message, context))
            return messages.encode(answered)

        return await infer(served, message.model_version or None, read, encode)

    async def ModelStreamInfer(
        self, requests: AsyncIterator[Any], context: Context
    ) -> AsyncIterator[Any]:
        """Each is answered before the next one is read."""
        try:
            self._let_in(context)
        except RequestError as error:
            await context.abort(_CODES[401], str(error))
        async for message in requests:
            try:
                answer = await self.ModelInfer(message, context)
                yield pb.ModelStreamInferResponse(infer_response=answer)
            except RequestError as error:
                failed = pb.ModelInferResponse(id=message.id)
                yield pb.ModelStreamInferResponse(error_message=str(error), infer_response=failed)


def _traced(message: Any, context: Context) -> dict[str, str]:
    """Whose request it is, by its id and the metadata, which are gRPC's headers."""
    given = dict(context.invocation_metadata() or ())
    return traced(given, getattr(message, "id", None))
