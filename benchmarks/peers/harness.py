"""What the comparisons share: a process that may crash, results that grow row by row, calls in turns."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from qkernels import _core
from qkernels.measuring.machine import describe_machine
from qkernels.measuring.timing import Timing

from .contenders import Call, Contender, prepare, versions
from .problem import AnyProblem, Unsupported

STREAM_BYTES = (16 << 10, 512 << 10, 16 << 20, 256 << 20)  # L1, L2, L3, memory, on most machines
CHILD = "QKERNELS_BENCHMARK_CHILD"
ALL_CORES = os.sched_getaffinity(0)


def make_parser(description: str, out: str) -> argparse.ArgumentParser:
    """The flags of every comparison."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--only", default="", help="regular expression on the name of a row")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.set_defaults(all_threads=None)  # in a child, which runs one of them
    parser.add_argument("--quick", action="store_true", help="a fifth of the time")
    parser.add_argument("--fresh", action="store_true", help="forget the rows of an earlier run")
    return parser


def in_a_child(arguments: argparse.Namespace, run: Callable[[argparse.Namespace], None]) -> None:
    """Run in children: one a number of threads, since a runtime may count the cores only once (OpenVINO does); and
    where a contender crashes one, the next goes on without that contender."""
    arguments.all_threads = arguments.threads
    if CHILD in os.environ:
        arguments.threads = [int(os.environ[CHILD])]
        use_threads(arguments.threads[0])
        return run(arguments)
    fresh = arguments.fresh
    for threads in arguments.threads:
        _children(arguments, threads, fresh)
        fresh = False
    sys.exit(0)


def _children(arguments: argparse.Namespace, threads: int, fresh: bool) -> None:
    trying = arguments.out.with_suffix(".trying")
    trying.unlink(missing_ok=True)
    while True:
        command = [sys.executable, *(a for a in sys.argv if fresh or a != "--fresh")]
        code = subprocess.run(command, env=os.environ | {CHILD: str(threads)}).returncode
        if code >= 0 or not trying.exists():
            if code:
                sys.exit(code)
            return
        results, fresh = json.loads(arguments.out.read_text()), False
        culprit = json.loads(trying.read_text())
        print(
            f"{culprit[-1]} crashed ({signal.Signals(-code).name}); going on without it", flush=True
        )
        results["crashed"].append(culprit)
        save(arguments.out, results)
        trying.unlink()


def load(
    arguments: argparse.Namespace, contenders: Iterable[Contender], flags: str = ""
) -> dict[str, Any]:
    """The results so far, or new ones; they begin with what this machine can do at most."""
    peaks: dict[str, Any] = {}
    results: dict[str, Any] = {}
    if arguments.out.exists() and not arguments.fresh:
        results = json.loads(arguments.out.read_text())
        peaks = results["peaks"]
    peaks |= {str(n): machine_peaks(n) for n in arguments.threads if str(n) not in peaks}
    if results:
        return results
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    threads = " ".join(map(str, arguments.all_threads or arguments.threads))
    command = f"python benchmarks/{Path(sys.argv[0]).name} --threads {threads}{flags}"
    command += f" --only '{arguments.only}'" if arguments.only else ""
    machine = describe_machine() | {"cores": len(ALL_CORES), "contenders": versions(contenders)}
    return {"machine": machine, "command": command, "peaks": peaks, "crashed": [], "rows": []}


def machine_peaks(threads: int) -> dict[str, Any]:
    """Operations and reads a second of as many cores, before anything else heats them; the best of short runs, since
    what others do on a shared core takes from single ones."""
    return {
        "gops": max(_core.peak_gops(threads=threads, seconds=0.05) for _ in range(20)),
        "read_gbytes": {str(b): _core.read_gbytes(b, threads=threads) for b in STREAM_BYTES},
    }


def save(path: Path, results: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(results, indent=1) + "\n")
    part.replace(path)


def use_threads(threads: int) -> None:
    if threads > len(ALL_CORES):
        sys.exit(f"--threads {threads}: this process may use {len(ALL_CORES)} cores")
    os.sched_setaffinity(0, sorted(ALL_CORES)[-threads:])
    torch.set_num_threads(threads)


def prepare_all(
    contenders: Iterable[Contender],
    problem: AnyProblem,
    threads: int,
    key: list[Hashable],
    out: Path,
    crashed: list[list[Hashable]],
) -> tuple[dict[str, Call], dict[str, str]]:
    """A call of every contender that can run the problem, and why the others cannot; `key` names the row."""
    calls: dict[str, Call] = {}
    reasons: dict[str, str] = {}
    trying = out.with_suffix(".trying")
    for contender in contenders:
        if [*key, contender.name] in crashed:
            reasons[contender.name] = "crashed the process"
            continue
        trying.write_text(json.dumps([*key, contender.name]))
        try:
            calls[contender.name] = prepare(contender, problem, threads)
        except Unsupported as reason:
            reasons[contender.name] = str(reason)
    trying.unlink(missing_ok=True)
    return calls, reasons


def take_turns(
    calls: Mapping[str, Call], contenders: Iterable[Contender], seconds: float
) -> dict[str, Timing]:
    """Single calls in turns of an eighth of `seconds`; a slow spell of the machine meets all contenders."""
    settle = {c.name: c.settle for c in contenders}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(8):
        for name, call in calls.items():
            if turn >= 3 and sum(times[name]) > 4 * seconds:
                continue  # slow: three turns say enough
            call()
            started = before = time.perf_counter()
            while before - started < seconds / 8:
                call()
                now = time.perf_counter()
                times[name].append(now - before)
                before = now
            time.sleep(settle[name])
    return {name: Timing(tuple(sorted(values))) for name, values in times.items()}


def microseconds(timings: Mapping[str, Timing]) -> dict[str, list[float]]:
    """Median, tenth and ninetieth percentile by name."""
    return {
        name: [t.median * 1e6, t.percentile(10) * 1e6, t.percentile(90) * 1e6]
        for name, t in timings.items()
    }
