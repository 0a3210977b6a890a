"""Two processes: one holds the listening socket, its child serves; a child that is killed is replaced."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import gc
import logging
import os
import signal
import socket
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from qkernels.serve.app import application
from qkernels.serve.door import Door, Inside
from qkernels.serve.memory import GivesBack
from qkernels.serve.settings import Settings

logger = logging.getLogger("qkernels.serve")

_WATCHED = {signal.SIGCHLD, signal.SIGINT, signal.SIGTERM}
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_LAST_CALL = 0.1  # seconds in which a draining server still reads from connections that look idle


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; connections wait in it while nobody serves. `::` is every address, those of IPv4 among them.

    Raises OSError that names the address.
    """
    host = host.removeprefix("[").removesuffix("]")
    is_v6 = ":" in host
    both = host == "::" and socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            (host, port),
            family=socket.AF_INET6 if is_v6 else socket.AF_INET,
            backlog=2048,
            dualstack_ipv6=both,
        )
    except OSError as error:
        raise OSError(error.errno, f"{host}, port {port}: {error.strerror or error}") from error


def listen_at(path: Path) -> socket.socket:
    """A listening UNIX socket; one that nobody listens on any more is replaced. Raises OSError that names it."""
    with socket.socket(socket.AF_UNIX) as other:
        try:
            other.connect(str(path))
        except ConnectionRefusedError:
            if path.is_socket():
                path.unlink()
        except OSError:
            pass  # there is none, or it is something else, which is told below
        else:
            raise OSError(errno.EADDRINUSE, f"{path}: somebody listens there")
    listening = socket.socket(socket.AF_UNIX)
    try:
        listening.bind(str(path))
    except OSError as error:
        raise OSError(error.errno, f"{path}: {error.strerror or error}") from error
    listening.listen(2048)
    return listening


def shown(listening: socket.socket) -> str:
    """Its address, as in a URL."""
    name = listening.getsockname()
    if listening.family == socket.AF_UNIX:
        return f"unix:{name}"
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reserve(host: str, port: int) -> tuple[str, socket.socket]:
    """An address where nobody listens yet, and the socket that holds it: a child after the other may listen there.

    Raises OSError that names the address.
    """
    with listen(host, port) as free:  # nobody else does, who would get a share of the connections
        port = free.getsockname()[1]
        family = free.family
    host = host.removeprefix("[").removesuffix("]")
    held = socket.socket(family, socket.SOCK_STREAM)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if family == socket.AF_INET6:
        held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
    held.bind((host, port))
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}", held


def serve(settings: Settings, listening: socket.socket, **options: Any) -> None:
    """Serve in a child process until a signal; ``options``: of `uvicorn.Config`, such as its TLS.

    Raises in the child what is wrong with the model; this process then exits with the child's code.
    """
    gc.freeze()  # what is imported stays: under load the collector would go through it again and again
    gc.set_threshold(20_000)  # and a request leaves hardly a cycle
    restarts = outlive_children(listening)
    failures: list[BaseException] = []

    def failed(error: BaseException) -> None:
        failures.append(error)
        server.should_exit = True

    app = application(settings, failed, restarts)
    config = uvicorn.Config(
        app,
        http=partial(Door, inside=app.state.inside),  # type: ignore[arg-type]
        log_config=None,
        access_log=False,
        proxy_headers=False,
        ws="none",
        timeout_graceful_shutdown=int(settings.timeout) + 1,
        backlog=2048,
        **options,
    )
    server = _Server(config, app.state.inside, settings.timeout)
    with contextlib.suppress(KeyboardInterrupt):
        server.run([listening])
    if failures:
        raise failures[0]


def outlive_children(listening: socket.socket) -> int:
    """Fork a child, and another whenever one is killed by a signal. Returns in each child: how many came before it.

    This process ends with the exit code of a child that ended by itself, or when it is told to: it stops listening,
    lets the child drain, and exits with 0.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)  # they are waited for, nothing interrupts
    parent, restarts = os.getpid(), 0
    while True:
        began = time.monotonic()
        if (child := os.fork()) == 0:
            _end_with(parent)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
            return restarts
        code = _outlive(child, listening)
        if code >= 0:
            sys.exit(code)
        killer = signal.Signals(-code).name
        logger.error("process %d was killed by %s; another takes its place", child, killer)
        time.sleep(max(0.0, began + 1 - time.monotonic()))  # at most one a second
        restarts += 1


def _outlive(child: int, listening: socket.socket) -> int:
    """The child's exit code, or minus the signal that killed it, which is no failure where it was told to end."""
    told = False
    while True:
        if signal.sigwait(_WATCHED) != signal.SIGCHLD:
            told = True
            listening.close()
            os.kill(child, signal.SIGTERM)
            continue
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            if not told:
                return code
            return 0 if code in (0, -signal.SIGTERM) else 1


def _end_with(parent: int) -> None:
    """Drain and end when the parent does, whatever ends it: nobody else would."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(1)


class _Server(uvicorn.Server):
    """A server that reads what has arrived before it ends.

    uvicorn closes connections that look idle when it is told to end, though a request may lie in their buffers; here
    these are read first, and each answer says that it is its connection's last.
    """

    def __init__(self, config: uvicorn.Config, inside: Inside, handshake: float) -> None:
        super().__init__(config)
        self._inside, self._handshake = inside, handshake
        self._memory = GivesBack()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Does what uvicorn's does with sockets; a TLS handshake has as long as headers have."""
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(1)
        config, loop = self.config, asyncio.get_running_loop()
        door: Any = config.http_protocol_class
        made = partial(door, config, self.server_state, self.lifespan.state)
        limits: dict[str, Any] = {"ssl_handshake_timeout": self._handshake} if config.ssl else {}
        self.servers = [
            await loop.create_server(
                made, sock=one, ssl=config.ssl, backlog=config.backlog, **limits
            )
            for one in sockets or []
        ]
        self.started = True

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:
            self._inside.connections.sweep()
            self._memory.now_and_then()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.server_state.default_headers += [(b"connection", b"close")]
        await asyncio.sleep(_LAST_CALL)
        await super().shutdown(sockets)
