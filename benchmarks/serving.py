"""A served program under load: what the server adds, what batching gains, what happens at twice its capacity.

python benchmarks/serving.py MODEL.qkp N,C,H,W [--seconds 10] [--threads 1] [--server-cores 0 --client-cores 1]
                             [--out build/serving.json] [--doc]

The load generator runs in this process, on the loopback; --doc also writes the tables of docs/serving.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from qkernels.program import Program

ROOT = Path(__file__).parents[1]
CLIENTS = 32
OPEN, CLOSE = "<!-- serving -->\n", "<!-- end -->"  # where the tables stand in docs/serving.md
Address = tuple[str, int]


@dataclass
class Load:
    """Answers of one run: seconds by status, and requests that got none."""

    duration: float = 0.0
    seconds: dict[int, list[float]] = field(default_factory=dict)
    sent: int = 0
    unanswered: int = 0

    def add(self, status: int, seconds: float) -> None:
        self.seconds.setdefault(status, []).append(seconds)

    def row(self) -> dict[str, Any]:
        """JSON-able: rates a second, latencies in milliseconds."""
        good = self.seconds.get(200, [])
        refused = [s for status, all_ in self.seconds.items() if status != 200 for s in all_]
        return {
            "sent_per_second": self.sent / self.duration,
            "answered_per_second": len(good) / self.duration,
            "refused_per_second": len(refused) / self.duration,
            "unanswered": self.unanswered,
            "p50_ms": percentile(good, 50),
            "p99_ms": percentile(good, 99),
            "refused_p99_ms": percentile(refused, 99),
        }


def percentile(seconds: list[float], q: float) -> float | None:
    return float(np.percentile(seconds, q) * 1e3) if seconds else None


class Connection:
    """One at a time, kept open."""

    def __init__(self, address: Address, request: bytes) -> None:
        self._address, self._request = address, request
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, load: Load, limit: float = 30.0) -> None:
        began = time.perf_counter()
        load.sent += 1
        try:
            status = await asyncio.wait_for(self._ask(), limit)
            load.add(status, time.perf_counter() - began)
        except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError):
            load.unanswered += 1
            self.close()

    async def _ask(self) -> int:
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address)
        reader, writer = self._streams
        writer.write(self._request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: (\d+)", head)
        assert length is not None
        await reader.readexactly(int(length[1]))
        return int(head[9:12])

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None


async def closed_loop(address: Address, request: bytes, clients: int, seconds: float) -> Load:
    """Clients that each send their next request when they have the answer; the first tenth is not counted."""
    connections = [Connection(address, request) for _ in range(clients)]
    load = Load()
    for load in (Load(seconds / 10), Load(seconds)):
        until = time.perf_counter() + load.duration

        async def client(connection: Connection, load: Load = load, until: float = until) -> None:
            while time.perf_counter() < until:
                await connection.ask(load)

        await asyncio.gather(*map(client, connections))
    for connection in connections:
        connection.close()
    return load


async def open_loop(address: Address, request: bytes, rate: float, seconds: float) -> Load:
    """Requests at random times (Poisson, seeded), whether or not earlier ones are answered."""
    idle: list[Connection] = []
    tasks: set[asyncio.Task[None]] = set()
    load, random = Load(seconds), np.random.default_rng(0)
    began = time.perf_counter()

    async def one() -> None:
        connection = idle.pop() if idle else Connection(address, request)
        await connection.ask(load)
        idle.append(connection)

    at = 0.0
    while (at := at + random.exponential(1 / rate)) < seconds:
        await asyncio.sleep(max(0.0, began + at - time.perf_counter()))
        task = asyncio.create_task(one())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    load.duration = time.perf_counter() - began  # longer where this process cannot send so fast
    await asyncio.gather(*tasks)
    for connection in idle:
        connection.close()
    return load


@contextmanager
def serving(model: Path, size: str, cores: set[int], *words: str) -> Iterator[Address]:
    """A server on these cores, ready, until the block ends."""
    command = [sys.executable, "-m", "qkernels.serve", str(model), "--size", size, "--port", "0"]
    process = subprocess.Popen(
        [*command, "--name", "m", *words],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    assert process.stderr is not None
    try:
        address, ready = None, False
        while not (address and ready):
            if not (line := process.stderr.readline()):
                raise SystemExit("the server did not start")
            found = re.search(r"http://([\d.]+):(\d+)", line)
            address = (found[1], int(found[2])) if found else address
            ready = ready or "is ready" in line
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def binary_request(x: np.ndarray) -> bytes:
    """One image in, raw bytes both ways."""
    given = {"name": "input", "shape": x.shape, "datatype": "FP32"}
    given["parameters"] = {"binary_data_size": x.nbytes}
    head = json.dumps({"inputs": [given], "parameters": {"binary_data_output": True}}).encode()
    lines = [
        "POST /v2/models/m/infer HTTP/1.1", "Host: bench", f"Content-Length: {len(head) + x.nbytes}",
        f"Inference-Header-Content-Length: {len(head)}", "", "",
    ]  # fmt: skip
    return "\r\n".join(lines).encode() + head + x.tobytes()


def direct_ms(model: Path, x: np.ndarray, threads: int, seconds: float) -> float:
    """Median of one call in this process."""
    program, times = Program.load(model, threads), list[float]()
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        began = time.perf_counter()
        program(x)
        times.append(time.perf_counter() - began)
    return float(np.median(times) * 1e3)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The JSON-able figures of all runs."""
    size, seconds = tuple(int(n) for n in arguments.size.split(",")), arguments.seconds
    x = np.random.default_rng(0).standard_normal((1, *size[1:])).astype(np.float32)
    request = binary_request(x)
    server_cores, client_cores = map(cores_of, (arguments.server_cores, arguments.client_cores))
    os.sched_setaffinity(0, server_cores)
    direct = direct_ms(arguments.model, x, arguments.threads, min(seconds, 2.0))
    os.sched_setaffinity(0, client_cores)

    def run(load: Any) -> dict[str, Any]:
        return uvloop.run(load).row()

    words = ("--workers", "1", "--threads", str(arguments.threads))
    place = (arguments.model, arguments.size, server_cores, *words)
    with serving(*place, "--max-batch", "1") as address:
        one = run(closed_loop(address, request, 1, seconds))
        unbatched = run(closed_loop(address, request, CLIENTS, seconds))
    with serving(*place, "--max-batch", str(CLIENTS)) as address:
        batched = run(closed_loop(address, request, CLIENTS, seconds))
        capacity = batched["answered_per_second"]
        overload = run(open_loop(address, request, 2 * capacity, seconds))
    return {
        "model": arguments.model.stem,
        "threads": arguments.threads,
        "server_cores": sorted(server_cores),
        "client_cores": sorted(client_cores),
        "seconds": seconds,
        "direct_p50_ms": direct,
        "overhead_ms": one["p50_ms"] - direct,
        "batching_gain": capacity / unbatched["answered_per_second"],
        "goodput_of_capacity": overload["answered_per_second"] / capacity,
        "runs": {
            "1 client": one,
            f"{CLIENTS} clients, no batching": unbatched,
            f"{CLIENTS} clients, batches": batched,
            "twice the capacity": overload,
        },
    }


def cores_of(text: str | None) -> set[int]:
    return set(map(int, text.split(","))) if text else os.sched_getaffinity(0)


def document(results: dict[str, Any]) -> str:
    """The tables of docs/serving.md."""
    machine = results["machine"]
    lines = [
        f"{results['model']}, {results['threads']} threads a call, server on cores {results['server_cores']}, "
        f"load generator on {results['client_cores']}, {results['seconds']:g} s a run; "
        f"{machine['cpu']}, {machine['isa']}.\n",
        "| run | sent/s | answered/s | p50, ms | p99, ms | refused/s | refused, p99 ms | no answer |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in results["runs"].items():
        cells = [f"{row['sent_per_second']:,.0f}", f"{row['answered_per_second']:,.0f}"]
        cells += [shown(row["p50_ms"]), shown(row["p99_ms"]), f"{row['refused_per_second']:,.0f}"]
        cells += [shown(row["refused_p99_ms"]), str(row["unanswered"])]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "\n| | figure | target |\n| --- | ---: | ---: |",
        f"| p50 beyond that of a call, {results['direct_p50_ms']:.3f} ms | {results['overhead_ms']:.3f} ms "
        "| below 0.5 ms |",
        f"| throughput with batches / without, {CLIENTS} clients | {results['batching_gain']:.2f} | 2 |",
        f"| answered at twice the capacity / capacity | {results['goodput_of_capacity']:.0%} | above 90% |",
    ]
    return "\n".join(lines) + "\n"


def shown(ms: float | None) -> str:
    return "" if ms is None else f"{ms:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("size")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--server-cores")
    parser.add_argument("--client-cores")
    parser.add_argument("--out", type=Path, default=ROOT / "build/serving.json")
    parser.add_argument("--doc", action="store_true")
    arguments = parser.parse_args()
    results = measure(arguments)
    from qkernels.machine import describe_machine  # torch comes after what is timed

    results["machine"] = describe_machine()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    print(document(results))
    if arguments.doc:
        page = ROOT / "docs/serving.md"
        before, _, rest = page.read_text().partition(OPEN)
        page.write_text(before + OPEN + document(results) + CLOSE + rest.partition(CLOSE)[2])


if __name__ == "__main__":
    main()
