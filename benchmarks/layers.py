"""Every layer of the target table against every other int8 library, in one process, in turns.

python benchmarks/layers.py [--out RESULTS.json] [--only REGEX] [--threads N ...] [--isa avx2] [--quick] [--fresh]

Rows are written as they come and a second run goes on where the first stopped. `pip install '.[peers]'` brings the
contenders; one that is missing, cannot run a case, or takes the process down with it, is named in the row with the
reason.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

AVX2 = {  # how each library is held to AVX2; ONNX Runtime cannot be
    "QKERNELS_MAX_ISA": "avx2",
    "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",  # of torch and of OpenVINO
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
HELD = ("qkernels", "torch fp32", "oneDNN (torch)", "FBGEMM (torch)", "OpenVINO")
if "--isa" in sys.argv:  # before torch is imported
    os.environ.update(AVX2)

import torch
from peers import harness
from peers.contenders import CONTENDERS
from peers.problem import Problem
from peers.targets import Target, problems

from qkernels.utils.progress import progress

FIELDS = ("class", "case", "scheme", "threads")


def run(arguments: argparse.Namespace) -> None:
    """The rows that the results do not hold yet."""
    rows = [(t, p, n) for n in arguments.threads for t, p in problems() if matches(arguments, t, p)]
    if not rows:
        sys.exit(f"no row matches {arguments.only!r}; leave --only out to see all")
    flags = f" --isa {arguments.isa}" if arguments.isa else ""
    results = harness.load(arguments, CONTENDERS, flags)
    harness.save(arguments.out, results)
    done = {tuple(row[f] for f in FIELDS) for row in results["rows"]}
    with progress("timing", len(rows)) as advance, torch.inference_mode():
        for target, problem, threads in rows:
            if (target.name, problem.case.name, problem.scheme, threads) not in done:
                harness.use_threads(threads)
                results["rows"].append(measure(target, problem, threads, arguments, results))
                harness.save(arguments.out, results)
                print(summary(results["rows"][-1]), flush=True)
            advance(1, f"{problem.case.name} {problem.scheme}")


def parse() -> argparse.Namespace:
    parser = harness.make_parser((__doc__ or "").splitlines()[0], "build/layers.json")
    parser.add_argument("--isa", choices=["avx2"], help="hold all contenders to it")
    return parser.parse_args()


def matches(arguments: argparse.Namespace, target: Target, problem: Problem) -> bool:
    return bool(re.search(arguments.only, f"{target.name} {problem.case.name} {problem.scheme}"))


def measure(
    target: Target,
    problem: Problem,
    threads: int,
    arguments: argparse.Namespace,
    results: dict[str, Any],
) -> dict[str, Any]:
    """Times of all contenders for one problem."""
    key = [target.name, problem.case.name, problem.scheme, threads]
    held = "QKERNELS_MAX_ISA" in os.environ
    contenders = [c for c in CONTENDERS if not held or c.name in HELD]
    calls, reasons = harness.prepare_all(
        contenders, problem, threads, key, arguments.out, results["crashed"]
    )
    timings = harness.take_turns(calls, contenders, 0.05 if arguments.quick else 0.25)
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
        "us": harness.microseconds(timings),
        "reasons": reasons,
        "best_peer": best,
        "times_best_peer": peers[best] / ours if best else None,
        "times_fp32": floats[0] / ours if floats else None,
        "gops": gops,
        "share_of_peak": gops / results["peaks"][str(threads)]["gops"],
        "gbytes": problem.bytes / ours / 1e9,
    }


def summary(row: dict[str, Any]) -> str:
    peer = f"{row['times_best_peer']:.2f}x {row['best_peer']}" if row["best_peer"] else "no peer"
    fp32 = f", {row['times_fp32']:.1f}x fp32" if row["times_fp32"] else ""
    name = f"{row['class']}: {row['case']} {row['scheme']}, {row['threads']} threads"
    share = f"{row['share_of_peak']:.0%} of peak"
    return (
        f"{name}: {row['us']['qkernels'][0]:.1f} us, {peer} (target {row['target']}){fp32}, {share}"
    )


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    harness.in_a_child(parse(), run)
