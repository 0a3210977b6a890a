"""Every layer of the target table against every other int8 library, in one process, in turns.

python benchmarks/layers.py [--out RESULTS.json] [--only REGEX] [--threads N ...] [--isa avx2] [--quick] [--fresh]

Rows are written as they come and a second run goes on where the first stopped. `pip install '.[peers]'` brings the
contenders; one that is missing, cannot run a case, or takes the process down with it, is named in the row with the
reason.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

AVX2 = {  # how each library is held to AVX2; ONNX Runtime and OpenVINO cannot be
    "QKERNELS_MAX_ISA": "avx2",
    "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
HELD = ("qkernels", "torch fp32", "oneDNN (torch)", "FBGEMM (torch)")
if "--isa" in sys.argv:  # before torch is imported
    os.environ.update(AVX2)

import torch
from peers.contenders import CONTENDERS, prepare, versions
from peers.problem import Problem, Unsupported
from peers.targets import Target, problems

from qkernels import _core
from qkernels.data.progress import progress
from qkernels.machine import describe_machine
from qkernels.timing import Timing

FIELDS = ("class", "case", "scheme", "threads")
STREAM_BYTES = (16 << 10, 512 << 10, 16 << 20, 256 << 20)  # L1, L2, L3, memory, on most machines
CHILD = "QKERNELS_LAYERS_CHILD"


def main() -> None:
    """Run the rows in a child: where a contender crashes it, the next child goes on without that contender."""
    arguments = parse()
    if CHILD in os.environ:
        return run(arguments)
    trying, fresh = arguments.out.with_suffix(".trying"), arguments.fresh
    trying.unlink(missing_ok=True)
    while True:
        command = [sys.executable, *(a for a in sys.argv if fresh or a != "--fresh")]
        code = subprocess.run(command, env=os.environ | {CHILD: "1"}).returncode
        if code >= 0 or not trying.exists():
            sys.exit(code)
        results, fresh = json.loads(arguments.out.read_text()), False
        culprit = json.loads(trying.read_text())
        print(
            f"{culprit[-1]} crashed ({signal.Signals(-code).name}); going on without it", flush=True
        )
        results["crashed"].append(culprit)
        save(arguments.out, results)
        trying.unlink()


def run(arguments: argparse.Namespace) -> None:
    """The rows that the results do not hold yet."""
    rows = [(t, p, n) for n in arguments.threads for t, p in problems() if matches(arguments, t, p)]
    if not rows:
        sys.exit(f"no row matches {arguments.only!r}; leave --only out to see all")
    results = load(arguments)
    save(arguments.out, results)
    done = {tuple(row[f] for f in FIELDS) for row in results["rows"]}
    with progress("timing", len(rows)) as advance, torch.inference_mode():
        for target, problem, threads in rows:
            if (target.name, problem.case.name, problem.scheme, threads) not in done:
                use_threads(threads)
                results["rows"].append(measure(target, problem, threads, arguments, results))
                save(arguments.out, results)
                print(summary(results["rows"][-1]), flush=True)
            advance(1, f"{problem.case.name} {problem.scheme}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/layers.json"))
    parser.add_argument("--only", default="", help="regular expression on class, case and scheme")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--isa", choices=["avx2"], help="hold all contenders to it")
    parser.add_argument("--quick", action="store_true", help="a fifth of the time")
    parser.add_argument("--fresh", action="store_true", help="forget the rows of an earlier run")
    return parser.parse_args()


def matches(arguments: argparse.Namespace, target: Target, problem: Problem) -> bool:
    return bool(re.search(arguments.only, f"{target.name} {problem.case.name} {problem.scheme}"))


def load(arguments: argparse.Namespace) -> dict[str, Any]:
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
    command = f"python benchmarks/layers.py --threads {' '.join(peaks)}"
    command += f" --isa {arguments.isa}" if arguments.isa else ""
    command += f" --only '{arguments.only}'" if arguments.only else ""
    machine = describe_machine() | {"contenders": versions()}
    return {"machine": machine, "command": command, "peaks": peaks, "crashed": [], "rows": []}


def machine_peaks(threads: int) -> dict[str, Any]:
    """Operations and reads a second of as many cores, before anything else heats them."""
    return {
        "gops": _core.peak_gops(threads=threads),
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


def measure(
    target: Target,
    problem: Problem,
    threads: int,
    arguments: argparse.Namespace,
    results: dict[str, Any],
) -> dict[str, Any]:
    """Times of all contenders for one problem."""
    calls: dict[str, Callable[[], object]] = {}
    reasons: dict[str, str] = {}
    key = [target.name, problem.case.name, problem.scheme, threads]
    trying = arguments.out.with_suffix(".trying")
    for contender in CONTENDERS:
        if "QKERNELS_MAX_ISA" in os.environ and contender.name not in HELD:
            continue
        if [*key, contender.name] in results["crashed"]:
            reasons[contender.name] = "crashed the process"
            continue
        trying.write_text(json.dumps([*key, contender.name]))
        try:
            calls[contender.name] = prepare(contender, problem, threads)
        except Unsupported as reason:
            reasons[contender.name] = str(reason)
    trying.unlink()
    timings = take_turns(calls, 0.05 if arguments.quick else 0.25)
    ours = timings["qkernels"].median
    peers = {
        c.name: timings[c.name].median for c in CONTENDERS[1:] if c.is_int8 and c.name in timings
    }
    best = min(peers, key=lambda name: peers[name]) if peers else None
    floats = [timings[n].median for n in ("torch fp32",) if n in timings]
    gops = 2 * problem.case.macs / ours / 1e9
    return {
        "class": target.name,
        "case": problem.case.name,
        "scheme": problem.scheme,
        "threads": threads,
        "target": target.factor_of(problem),
        "us": {
            name: [t.median * 1e6, t.percentile(10) * 1e6, t.percentile(90) * 1e6]
            for name, t in timings.items()
        },
        "reasons": reasons,
        "best_peer": best,
        "times_best_peer": peers[best] / ours if best else None,
        "times_fp32": floats[0] / ours if floats else None,
        "gops": gops,
        "share_of_peak": gops / results["peaks"][str(threads)]["gops"],
        "gbytes": problem.bytes / ours / 1e9,
    }


def take_turns(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, Timing]:
    """Single calls in turns of an eighth of `seconds`; a slow spell of the machine meets all contenders."""
    settle = {c.name: c.settle for c in CONTENDERS}
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


def summary(row: dict[str, Any]) -> str:
    peer = f"{row['times_best_peer']:.2f}x {row['best_peer']}" if row["best_peer"] else "no peer"
    fp32 = f", {row['times_fp32']:.1f}x fp32" if row["times_fp32"] else ""
    name = f"{row['class']}: {row['case']} {row['scheme']}, {row['threads']} threads"
    share = f"{row['share_of_peak']:.0%} of peak"
    return (
        f"{name}: {row['us']['qkernels'][0]:.1f} us, {peer} (target {row['target']}){fp32}, {share}"
    )


ALL_CORES = os.sched_getaffinity(0)

if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
