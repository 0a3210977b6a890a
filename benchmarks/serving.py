"""Served models under load: what HTTP and gRPC add to a call, what batches gain, what happens at twice the capacity;
and ONNX Runtime behind the same HTTP layer, and LitServe before the same program.

python benchmarks/serving.py [--out RESULTS.json] [--only REGEX] [--seconds 6] [--threads 1] [--server-cores 0]
                             [--client-cores 1] [--fresh]

A row is named like "resnet20, qkernels, 32 clients". Rows are written as they come and a second run goes on where the
first stopped; none takes a minute. The load generator runs in this process, on the loopback, on cores of its own.
`pip install '.[peers]'` brings ONNX Runtime and LitServe.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import load
import served
from served import (
    ALONE,
    BATCHED,
    BOUNDED,
    BY_GRPC,
    CALL,
    CLIENTS,
    MODELS,
    OVERLOAD,
    ROOT,
    ROWS,
    UNBATCHED,
    Model,
    Row,
    Server,
)

from qkernels.program import Program
from qkernels.utils.progress import progress

STEPS = 5  # of the search for the highest rate within a bound
FIELDS = ("model", "server", "run")


def call(program: Program, inputs: list[np.ndarray], seconds: float) -> Row:
    """One call after the other in this process, without a server."""
    times = list[float]()
    program(*inputs)
    until = time.perf_counter() + seconds
    while (began := time.perf_counter()) < until or len(times) < 3:
        program(*inputs)
        times.append(time.perf_counter() - began)
    return {"p50_ms": load.percentile(times, 50), "p99_ms": load.percentile(times, 99)}


def rows_in_batches(program: Program, model: Model, seconds: float) -> Row:
    """Milliseconds of a row, by the rows of its call."""
    sizes = [1 << power for power in range(model.batch.bit_length())]
    figures = {
        str(rows): call(program, model.inputs(rows), seconds / len(sizes))["p50_ms"] / rows
        for rows in sizes
    }
    return {"row_ms": figures}


def measure(model: Model, server: Server, run: str, results: Row) -> Row:
    """The figures of one row."""
    threads, seconds = results["threads"], results["seconds"]
    if run in (CALL, ROWS):
        os.sched_setaffinity(0, results["server_cores"])
        program = Program.load(model.file("qkp"), threads)
        if run == ROWS:
            return rows_in_batches(program, model, seconds)
        return call(program, model.inputs(), seconds / 2)
    os.sched_setaffinity(0, results["client_cores"])
    port, request = served.free_port(), server.request(model)
    one_by_one = run in (ALONE, BY_GRPC, UNBATCHED)
    command = server.command(model, port, threads, 1 if one_by_one else model.batch)
    if run == BY_GRPC:
        by_grpc = served.free_port()
        command.append(f"--grpc-port={by_grpc}")
    with served.running(command, port, server.ready, results["server_cores"]) as address:
        if run == BOUNDED:
            capacity = capacity_of(model, server, results)
            return within(model.bound_ms, address, request, seconds, capacity)
        if run == OVERLOAD:
            rate = 2 * capacity_of(model, server, results)
            return load.run(load.open_loop(address, request, rate, seconds)).row()
        if run == BY_GRPC:
            asked = load.infer_by_grpc(*model.inputs())
            return load.grpc_loop((address[0], by_grpc), asked, seconds).row()
        clients = 1 if run == ALONE else CLIENTS
        row = load.run(load.closed_loop(address, request, clients, seconds)).row()
    if not row["answered_per_second"]:
        raise SystemExit(
            f"{server.name}, {run}: no answer in {seconds:g} s; more --seconds, --fresh"
        )
    return row


def capacity_of(model: Model, server: Server, results: Row) -> float:
    """Answers a second that 32 clients got."""
    key = {"model": model.name, "server": server.name, "run": BATCHED}
    for row in results["rows"]:
        if key.items() <= row.items():
            return float(row["answered_per_second"])
    raise SystemExit(f"the row {', '.join(key.values())!r} comes first")


def within(
    bound_ms: float, address: load.Address, request: bytes, seconds: float, capacity: float
) -> Row:
    """The row of the highest rate at which all requests are answered and 99 of 100 within the bound.

    A rate that fails is tried once more: what else the machine does for a moment fails it, too.
    """
    low, high = 0.0, 1.25 * capacity
    best: Row = {"answered_per_second": 0.0, "p50_ms": None, "p99_ms": None}
    for _ in range(STEPS):
        rate = (low + high) / 2
        tries = (load.run(load.open_loop(address, request, rate, seconds)).row() for _ in range(2))
        kept = next((row for row in tries if _is_kept(row, bound_ms)), None)
        if kept:
            low, best = rate, kept
        else:
            high = rate
    return best


def _is_kept(row: Row, bound_ms: float) -> bool:
    """Whether a run answered what was sent, whose number is random, in time."""
    answered = row["answered_per_second"] > 0.95 * row["sent_per_second"]
    return (
        answered
        and not row["refused_per_second"]
        and not row["unanswered"]
        and row["p99_ms"] <= bound_ms
    )


def rows_of(models: tuple[Model, ...], only: str) -> list[tuple[Model, Server, str]]:
    return [
        (model, server, run)
        for model in models
        for server in served.SERVERS
        if model.name in server.models
        for run in server.runs
        if re.search(only, f"{model.name}, {server.name}, {run}")
    ]


def measure_all(out: Path, only: str, models: tuple[Model, ...], results: Row) -> None:
    """The rows that the results do not hold yet."""
    for name, why in results["machine"]["left_out"].items():
        print(f"{name} is left out: {why}", flush=True)
    there = tuple(model for model in models if model.name not in results["machine"]["left_out"])
    todo = rows_of(there, only)
    with progress("serving", len(todo)) as advance:
        for model, server, run in todo:
            key = {"model": model.name, "server": server.name, "run": run}
            if not any(key.items() <= row.items() for row in results["rows"]):
                results["rows"].append(key | measure(model, server, run, results))
                served.save(out, results)
                print(shown(results["rows"][-1]), flush=True)
            advance(1, ", ".join(key.values()))


def shown(row: Row) -> str:
    name = ", ".join(row[field] for field in FIELDS)
    if "row_ms" in row:
        return f"{name}: " + ", ".join(f"{n}: {ms:.3f} ms" for n, ms in row["row_ms"].items())
    rate = f"{row['answered_per_second']:,.0f}/s, " if "answered_per_second" in row else ""
    return f"{name}: {rate}p50 {row['p50_ms'] or 0:.2f} ms, p99 {row['p99_ms'] or 0:.2f} ms"


def cores_of(text: str | None, otherwise: int) -> list[int]:
    return [int(core) for core in text.split(",")] if text else [otherwise]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build/serving.json")
    parser.add_argument("--only", default="", help="regular expression on the name of a row")
    parser.add_argument("--seconds", type=float, default=6.0, help="of a run")
    parser.add_argument("--threads", type=int, default=1, help="of a call")
    parser.add_argument("--server-cores", help="such as 0,1; else the first that may be used")
    parser.add_argument("--client-cores", help="else the last that may be used")
    parser.add_argument("--fresh", action="store_true", help="forget the rows of an earlier run")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    if arguments.out.exists() and not arguments.fresh:
        results = json.loads(arguments.out.read_text())
    else:
        cores = sorted(os.sched_getaffinity(0))
        results = {
            "machine": served.prepare(MODELS),
            "command": f"python benchmarks/serving.py --seconds {arguments.seconds:g} --threads {arguments.threads}",
            "threads": arguments.threads,
            "seconds": arguments.seconds,
            "server_cores": cores_of(arguments.server_cores, cores[0]),
            "client_cores": cores_of(arguments.client_cores, cores[-1]),
            "models": {model.name: asdict(model) for model in MODELS},
            "rows": [],
        }
    measure_all(arguments.out, arguments.only, MODELS, results)


if __name__ == "__main__":
    main()
