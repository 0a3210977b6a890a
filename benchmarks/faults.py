"""What happens to a server and its other clients when something goes wrong: each fault comes while eight clients ask.

python benchmarks/faults.py [--seconds 6] [--only REGEX] [--out RESULTS.json]

Exit code 1: a client hung, got a wrong status, or the server did not come back to the memory and files it had.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import re
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

sys.path.insert(0, str(Path(__file__).parent))

import load
import served
from load import CLOSED, HUNG, Address, Load
from served import Row

from qkernels.utils.progress import progress

CLIENTS, PAUSE = 8, 0.005  # 8 clients that wait 5 ms after each answer
SETTLED_MB = (
    16.0  # what a server may hold more than before, when all is over: pieces of what it had at most
)
MANY = 1000


@dataclass
class Site:
    """A server under test, and where its models lie. ``marks``: seconds of `time.perf_counter` by what happened."""

    models: Path
    port: int
    process: subprocess.Popen[bytes]
    marks: dict[str, float] = field(default_factory=dict)

    @property
    def address(self) -> Address:
        return "127.0.0.1", self.port

    @property
    def child(self) -> int:
        """The process that serves now; 0: none."""
        pid = self.process.pid
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            return 0
        return int(children[0]) if children else 0

    def memory_mb(self) -> float:
        text = Path(f"/proc/{self.child}/status").read_text()
        return int(text.partition("VmRSS:")[2].split()[0]) / 1e3

    def files(self) -> int:
        return len(os.listdir(f"/proc/{self.child}/fd"))


@dataclass(frozen=True)
class Fault:
    """``act`` is done while the clients ask. ``flags``, ``options``: of the server, and of its process. ``may``: what
    clients may get beside 200. ``ends``: whether the server is gone afterwards."""

    name: str
    act: Callable[[Site, float], Awaitable[Any]]
    flags: tuple[str, ...] = ()
    options: Callable[[], dict[str, Any]] = dict
    may: frozenset[int] = frozenset()
    ends: bool = False


async def nothing(site: Site, seconds: float) -> None:
    await asyncio.sleep(seconds)


async def kill_child(site: Site, seconds: float) -> None:
    site.marks["fault"] = time.perf_counter()
    os.kill(site.child, signal.SIGKILL)


async def kill_parent(site: Site, seconds: float) -> None:
    site.marks["fault"] = time.perf_counter()
    site.process.kill()


async def connect_many(site: Site, seconds: float, first: bytes = b"", count: int = MANY) -> None:
    """Connections that send ``first`` and no more."""
    loop = asyncio.get_running_loop()
    held = []
    for _ in range(count):
        one = socket.socket()
        one.setblocking(False)
        with contextlib.suppress(OSError):
            await loop.sock_connect(one, site.address)
            await loop.sock_sendall(one, first)
        held.append(one)
    site.marks["memory"] = site.memory_mb()
    await asyncio.sleep(seconds / 2)
    for one in held:
        one.close()


async def idle(site: Site, seconds: float) -> None:
    await connect_many(site, seconds)


async def half_asked(site: Site, seconds: float) -> None:
    await connect_many(site, seconds, b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\n")


async def half_tls(site: Site, seconds: float) -> None:
    await connect_many(site, seconds, b"\x16\x03\x01\x02\x00\x01", 200)


async def never_read(site: Site, seconds: float) -> None:
    """Connections that ask for the page as often as they may, and read no answer."""
    ask = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 200
    await connect_many(site, seconds, ask, 100)


async def replace_files(site: Site, seconds: float) -> None:
    """Ten times a second, by the same bytes, which the server cannot know."""
    path = site.models / "m/1/model.qkp"
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        aside = path.with_suffix(".new")
        shutil.copyfile(path, aside)
        aside.replace(path)
        await asyncio.sleep(0.1)


async def load_storm(site: Site, seconds: float) -> None:
    """Eight clients that load the model without a pause."""
    ask = load.post("/v2/repository/models/m/load", b"{}")
    await load.closed_loop(site.address, ask, CLIENTS, seconds)


async def take_away(site: Site, seconds: float) -> None:
    """The folder of models is gone, then empty, as where a file system is not mounted, then back."""
    elsewhere = site.models.with_name("elsewhere")
    site.models.rename(elsewhere)
    await asyncio.sleep(seconds / 3)
    site.models.mkdir()
    await asyncio.sleep(seconds / 3)
    site.models.rmdir()
    elsewhere.rename(site.models)


def few_files() -> dict[str, Any]:
    return {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))}


def full_disk() -> dict[str, Any]:
    return {"stderr": open("/dev/full", "wb")}


TIMEOUT = ("--timeout", "1")
FAULTS = (
    Fault("nothing", nothing),
    Fault("kill -9 of the serving process", kill_child, may=frozenset({CLOSED, 503})),
    Fault("kill -9 of its parent", kill_parent, may=frozenset({CLOSED}), ends=True),
    Fault("no room on the disk for logs", nothing, ("--log-level", "debug"), full_disk),
    Fault("400 connections for 64 files", lambda s, t: connect_many(s, t, count=400), options=few_files),
    Fault("1,000 idle connections", idle),
    Fault("1,000 half-sent requests", half_asked, TIMEOUT),
    Fault("100 clients that never read", never_read, TIMEOUT),
    Fault("200 half-open TLS handshakes", half_tls, TIMEOUT),
    Fault("files replaced ten times a second", replace_files),
    Fault("loads asked for without a pause", load_storm, ("--control", "explicit", "--load", "m")),
    Fault("the repository goes away and comes back", take_away),
)  # fmt: skip


def measure(fault: Fault, program: Path, size: str, seconds: float) -> Row:
    """The row of one fault."""
    with tempfile.TemporaryDirectory() as name:
        models, port = Path(name) / "models", served.free_port()
        put(models / "m", program, size)
        command = command_of(models, port, *fault.flags)
        scheme = "http"
        if fault.act is half_tls:
            command += certified(Path(name))
            scheme = "https"
        url = f"{scheme}://127.0.0.1:{port}/v2/health/ready"
        with served.started(command, url, **fault.options()) as process:
            site = Site(models, port, process)
            tls = served.unverified(url)
            return uvloop.run(suffer(site, fault, request_of(size), seconds, tls))


async def suffer(
    site: Site, fault: Fault, request: bytes, seconds: float, tls: ssl.SSLContext | None
) -> Row:
    how = {"clients": CLIENTS, "pause": PAUSE, "tls": tls}
    await load.closed_loop(site.address, request, seconds=1, **how)
    memory, files = site.memory_mb(), site.files()
    asking = asyncio.create_task(load.closed_loop(site.address, request, seconds=seconds, **how))
    await asyncio.sleep(min(0.5, seconds / 4))
    act = asyncio.create_task(fault.act(site, seconds / 2))
    found = await asking
    await act
    over = time.perf_counter()
    while not (is_over := has_ended(site) if fault.ends else settled(site, memory, files)):
        if time.perf_counter() > over + 30:  # it gives memory back every ten seconds
            break
        await asyncio.sleep(0.05)
    statuses = [status for *_, status in found.answers]
    bad = set(statuses) - {200} - fault.may
    return {
        "fault": fault.name,
        "answered": statuses.count(200),
        "refused": statuses.count(503),
        "lost": statuses.count(CLOSED),
        "hung": statuses.count(HUNG),
        "p99_ms": load.percentile([e - b for b, e, status in found.answers if status == 200], 99),
        "longest_pause": longest_pause(found),
        "memory_mb": memory,
        "memory_then_mb": site.marks.get("memory"),
        "memory_after_mb": None if fault.ends or not site.child else site.memory_mb(),
        "files": files,
        "files_after": None if fault.ends or not site.child else site.files(),
        "settled_after": time.perf_counter() - over if is_over else None,
        "wrong": sorted(bad) + (["it does not settle"] if not is_over else []),
    }


def longest_pause(found: Load) -> float:
    """Seconds between two answers."""
    times = sorted(at for _, at, status in found.answers if status == 200)
    return max((b - a for a, b in itertools.pairwise(times)), default=0.0)


def settled(site: Site, memory: float, files: int) -> bool:
    """Whether the server is as it was."""
    try:
        return site.memory_mb() < memory + SETTLED_MB and site.files() <= files
    except OSError:
        return False


def has_ended(site: Site) -> bool:
    """Whether nobody listens any more."""
    try:
        socket.create_server(site.address).close()
    except OSError:
        return False
    return True


def many_models(program: Path, size: str, count: int = 20) -> Row:
    """How long a repository of so many models takes until it is ready."""
    with tempfile.TemporaryDirectory() as name:
        models, port = Path(name) / "models", served.free_port()
        for i in range(count):
            put(models / f"m{i}", program, size)
        began = time.perf_counter()
        url = f"http://127.0.0.1:{port}/v2/health/ready"
        with served.started(command_of(models, port), url) as process:
            seconds = time.perf_counter() - began
            site = Site(models, port, process)
            return {
                "models": count,
                "model_mb": program.stat().st_size / 1e6,
                "size": size,
                "ready_after": seconds,
                "memory_mb": site.memory_mb(),
            }


def command_of(models: Path, port: int, *flags: str) -> list[str]:
    words = ["-m", "qkernels.serve", str(models), f"--port={port}", "--threads=1"]
    return [*words, "--log-level=error", *flags]


def put(folder: Path, program: Path, size: str) -> None:
    """Put a program into the folder as the only version of a model."""
    (folder / "1").mkdir(parents=True)
    shutil.copyfile(program, folder / "1/model.qkp")
    (folder / "settings.json").write_text(json.dumps({"size": [f"1,{size}"]}))


def certified(folder: Path) -> list[str]:
    """Flags of a certificate made for the moment."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    written = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*words.split(), *written], check=True, capture_output=True)
    return ["--certificate", str(certificate), "--key", str(key)]


def request_of(size: str) -> bytes:
    shape = (1, *map(int, size.split(",")))
    return load.infer(np.random.default_rng(0).standard_normal(shape).astype(np.float32))


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="of a fault")
    parser.add_argument("--only", default="", help="regular expression on the name of a fault")
    parser.add_argument("--model", type=Path, help="else the ResNet-20 of benchmarks/serving.py")
    parser.add_argument("--size", default="3,32,32")
    parser.add_argument("--out", type=Path, default=served.ROOT / "build/faults.json")
    arguments = parser.parse_args()
    many = arguments.model
    if arguments.model is None:
        served.prepare(served.MODELS)
        arguments.model, many = (served.FILES / f"{m}.qkp" for m in ("resnet20", "tutorial_cnn"))
    faults = [fault for fault in FAULTS if re.search(arguments.only, fault.name)]
    command = f"python benchmarks/faults.py --seconds {arguments.seconds:g}"
    results: Row = {"command": command, "faults": []}
    with progress("faults", len(faults) + 1) as advance:
        for fault in faults:
            row = measure(fault, arguments.model, arguments.size, arguments.seconds)
            results["faults"].append(row)
            print(json.dumps(row), flush=True)
            advance(1, fault.name)
        results["start"] = many_models(many, arguments.size)
        print(json.dumps(results["start"]), flush=True)
    served.save(arguments.out, results)
    sys.exit(any(row["wrong"] for row in results["faults"]))


if __name__ == "__main__":
    main()
