"""What benchmarks/serving.py and benchmarks/soak.py put under load: models, and the servers before them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
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

CALL, ALONE, UNBATCHED, BATCHED = "a call", "1 client", "32 clients, one by one", "32 clients"
BOUNDED, OVERLOAD = "p99 within the bound", "twice the capacity"
Row = dict[str, Any]


@dataclass(frozen=True)
class Model:
    """``batch``: rows of one, at most. ``queue``: rows that may wait. ``bound_ms``: of the 99th percentile."""

    name: str
    size: tuple[int, ...]
    batch: int
    queue: int
    bound_ms: float

    def file(self, suffix: str) -> Path:
        return FILES / f"{self.name}.{suffix}"


MODELS = (
    Model("resnet20", (3, 32, 32), 32, 256, 20.0),
    Model("resnet50", (3, 224, 224), 8, 64, 500.0),
)


@dataclass(frozen=True)
class Server:
    """``command(model, port, threads, max_batch)`` starts it; ``request(x)`` are the bytes that ask it."""

    name: str
    runs: tuple[str, ...]
    command: Callable[[Model, int, int, int], list[str]]
    request: Callable[[np.ndarray], bytes]
    ready: str
    models: tuple[str, ...] = tuple(model.name for model in MODELS)


def _open_inference(script: list[str], suffix: str) -> Callable[[Model, int, int, int], list[str]]:
    def command(model: Model, port: int, threads: int, max_batch: int) -> list[str]:
        size = ",".join(map(str, (1, *model.size)))
        flags = {"size": size, "name": "m", "port": port, "workers": 1, "threads": threads}
        flags |= {"max-batch": max_batch, "queue": model.queue, "log-level": "warning"}
        words = [f"--{flag}={value}" for flag, value in flags.items()]
        return [*script, str(model.file(suffix)), *words]

    return command


def _litserve(model: Model, port: int, threads: int, max_batch: int) -> list[str]:
    size = ",".join(map(str, model.size))
    words = [str(model.file("qkp")), size, *map(str, (port, threads, max_batch))]
    return [str(PEERS / "serve_litserve.py"), *words]


HTTP_RUNS = (ALONE, UNBATCHED, BATCHED, BOUNDED)
SERVERS = (
    Server(
        "qkernels",
        (CALL, *HTTP_RUNS, OVERLOAD),
        _open_inference(["-m", "qkernels.serve"], "qkp"),
        load.infer,
        "/v2/health/ready",
    ),
    Server(
        "ONNX Runtime int8",
        HTTP_RUNS,
        _open_inference([str(PEERS / "serve_onnxruntime.py")], "onnx"),
        load.infer,
        "/v2/health/ready",
    ),
    Server(
        "LitServe",
        HTTP_RUNS,
        _litserve,
        lambda x: load.post("/predict", x.tobytes()),
        "/health",
        models=("resnet20",),
    ),
)


@contextlib.contextmanager
def running(
    command: list[str], port: int, ready: str, cores: Iterable[int] | None = None
) -> Iterator[load.Address]:
    """A server, on these cores, ready, until the block ends."""
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=cores and (lambda: os.sched_setaffinity(0, cores)),
    )
    try:
        while not _answers(f"http://127.0.0.1:{port}{ready}"):
            if process.poll() is not None:
                raise SystemExit(f"the server did not start: {' '.join(command)}")
            time.sleep(0.05)
        yield "127.0.0.1", port
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and whatever it has left behind
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as it:
        port: int = it.getsockname()[1]
        return port


def prepare(models: tuple[Model, ...]) -> Row:
    """Make the models' files where they are missing, and describe the machine: with torch, in another process."""
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
