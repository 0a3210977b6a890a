"""What benchmarks/serving.py and benchmarks/soak.py put under load: models, and the servers before them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import load
import numpy as np

ROOT = Path(__file__).parents[1]
PEERS = ROOT / "benchmarks/peers"
FILES = ROOT / "build/served"
CLIENTS = 32

CALL, ROWS = "a call", "a row by the size of its batch"
ALONE, BY_GRPC = "1 client", "1 client by gRPC"
UNBATCHED, BATCHED = "32 clients, one by one", "32 clients"
BOUNDED, OVERLOAD = "p99 within the bound", "twice the capacity"
OURS, PIXELS, PEER, LITSERVE = "qkernels", "qkernels, UINT8", "ONNX Runtime int8", "LitServe"
Row = dict[str, Any]


@dataclass(frozen=True)
class Model:
    """``sizes``: of its inputs for one example. ``ids``: the tokens that its first input holds, whose second is a mask;
    0: floats. ``batch``: rows of one, at most. ``queue``: rows that may wait. ``bound_ms``: of the 99th percentile."""

    name: str
    sizes: tuple[tuple[int, ...], ...]
    batch: int
    queue: int
    bound_ms: float
    ids: int = 0

    def file(self, suffix: str) -> Path:
        return FILES / f"{self.name}.{suffix}"

    def inputs(self, rows: int = 1) -> list[np.ndarray]:
        """Seeded examples."""
        random, shapes = np.random.default_rng(0), [(rows, *size) for size in self.sizes]
        if self.ids:
            return [random.integers(0, self.ids, shapes[0]), np.ones(shapes[1], np.int64)]
        return [random.standard_normal(shape).astype(np.float32) for shape in shapes]

    def pixels(self) -> np.ndarray:
        """A picture of its size, [1, H, W, C]."""
        ((channels, *size),) = self.sizes
        return np.random.default_rng(0).integers(0, 256, (1, *size, channels), np.uint8)


MODELS = (
    Model("resnet20", ((3, 32, 32),), 32, 256, 20.0),
    Model("resnet50", ((3, 224, 224),), 8, 64, 500.0),
    Model("minilm", ((128,), (128,)), 8, 64, 250.0, ids=30_000),
    Model("mobilenet_v2", ((3, 224, 224),), 32, 256, 500.0),
    Model("tutorial_cnn", ((3, 32, 32),), 32, 256, 20.0),
)


@dataclass(frozen=True)
class Server:
    """``command(model, port, threads, max_batch)`` starts it; ``request(model)`` are the bytes that ask it."""

    name: str
    runs: tuple[str, ...]
    command: Callable[[Model, int, int, int], list[str]]
    request: Callable[[Model], bytes]
    ready: str
    models: tuple[str, ...] = ("resnet20", "resnet50", "minilm")


def _open_inference(script: list[str], suffix: str) -> Callable[[Model, int, int, int], list[str]]:
    def command(model: Model, port: int, threads: int, max_batch: int) -> list[str]:
        flags = {"name": "m", "port": port, "workers": 1, "threads": threads}
        flags |= {"max-batch": max_batch, "queue": model.queue, "log-level": "warning"}
        words = [f"--{flag}={value}" for flag, value in flags.items()]
        sizes = [",".join(map(str, (1, *size))) for size in model.sizes]
        return [*script, str(model.file(suffix)), *words, *(f"--size={size}" for size in sizes)]

    return command


def _litserve(model: Model, port: int, threads: int, max_batch: int) -> list[str]:
    (sizes,) = model.sizes
    size = ",".join(map(str, sizes))
    words = [str(model.file("qkp")), size, *map(str, (port, threads, max_batch))]
    return [str(PEERS / "serve_litserve.py"), *words]


_OURS = _open_inference(["-m", "qkernels.serve"], "qkp")
HTTP_RUNS = (ALONE, UNBATCHED, BATCHED, BOUNDED)
SERVERS = (
    Server(
        OURS,
        (CALL, *HTTP_RUNS, OVERLOAD, BY_GRPC),
        _OURS,
        lambda model: load.infer(*model.inputs()),
        "/v2/health/ready",
    ),
    Server(
        PIXELS,
        (ALONE, BATCHED),
        _OURS,
        lambda model: load.infer(model.pixels()),
        "/v2/health/ready",
        models=("resnet50",),
    ),
    Server(OURS, (ROWS,), _OURS, lambda model: b"", "", models=tuple(m.name for m in MODELS)),
    Server(
        PEER,
        HTTP_RUNS,
        _open_inference([str(PEERS / "serve_onnxruntime.py")], "onnx"),
        lambda model: load.infer(*model.inputs()),
        "/v2/health/ready",
    ),
    Server(
        LITSERVE,
        HTTP_RUNS,
        _litserve,
        lambda model: load.post("/predict", model.inputs()[0].tobytes()),
        "/health",
        models=("resnet20",),
    ),
)


@contextlib.contextmanager
def running(
    command: list[str], port: int, ready: str, cores: Iterable[int] | None = None
) -> Iterator[load.Address]:
    """A server, on these cores, ready, until the block ends."""
    before = cores and (lambda: os.sched_setaffinity(0, cores))
    with started(command, f"http://127.0.0.1:{port}{ready}", preexec_fn=before):
        yield "127.0.0.1", port


@contextlib.contextmanager
def started(command: list[str], ready: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A server's process, until the block ends, once the URL ``ready`` answers; ``options``: of Popen."""
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.DEVNULL, start_new_session=True, **options
    )
    try:
        while not _answers(ready):
            if process.poll() is not None:
                raise SystemExit(f"the server did not start: {' '.join(command)}")
            time.sleep(0.01)
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and whatever it has left behind
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5, context=unverified(url)):
            return True
    except OSError:
        return False


def unverified(url: str) -> ssl.SSLContext | None:
    """A context that takes a certificate that nobody has signed; None for plain HTTP."""
    return ssl._create_unverified_context() if url.startswith("https") else None


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as it:
        port: int = it.getsockname()[1]
        return port


def prepare(models: tuple[Model, ...]) -> Row:
    """Make the models' files where they are missing, and describe the machine: with torch, in another process.

    ``left_out``: why some models have none.
    """
    script = [sys.executable, str(ROOT / "benchmarks/served_models.py"), str(FILES)]
    done = subprocess.run(
        [*script, *(model.name for model in models)], check=True, stdout=subprocess.PIPE
    )
    machine: Row = json.loads(done.stdout.splitlines()[-1])
    return machine


def save(path: Path, results: Row) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(results, indent=1) + "\n")
    part.replace(path)
