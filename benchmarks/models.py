"""Whole models, int8 and float, against every other library, in one process, in turns.

python benchmarks/models.py [--out RESULTS.json] [--only REGEX] [--contenders REGEX] [--threads N ...] [--quick]
    [--fresh]

A row is named like "resnet50 batch 1". Rows are written as they come and a second run goes on where the first stopped;
what peers make of a model (ONNX, IR) is kept in build/models until --fresh. `pip install '.[peers]'` brings the
contenders; one that is missing, cannot run a model, or takes the process down with it, is named in the row with the
reason.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from peers import harness
from peers.contenders import Contender, relative_error, values
from peers.model_contenders import CONTENDERS, OURS, PEERS
from peers.model_problem import FILES, ModelProblem, problems

from qkernels.utils.progress import progress

FIELDS = ("model", "batch", "threads")


def run(arguments: argparse.Namespace) -> None:
    """The rows that the results do not hold yet."""
    rows = [(p, n) for n in arguments.threads for p in problems() if matches(arguments, p)]
    if not rows:
        sys.exit(f"no row matches {arguments.only!r}; leave --only out to see all")
    if arguments.fresh:
        shutil.rmtree(FILES, ignore_errors=True)
    flags = f" --contenders '{arguments.contenders}'" if arguments.contenders else ""
    results = harness.load(arguments, CONTENDERS, flags)
    harness.save(arguments.out, results)
    done = {tuple(row[f] for f in FIELDS) for row in results["rows"]}
    with progress("timing", len(rows)) as advance, torch.inference_mode():
        for problem, threads in rows:
            if (problem.model, problem.batch, threads) not in done:
                harness.use_threads(threads)
                results["rows"].append(measure(problem, threads, arguments, results))
                harness.save(arguments.out, results)
                print(summary(results["rows"][-1]), flush=True)
            advance(1, f"{problem.model} batch {problem.batch}")


def matches(arguments: argparse.Namespace, problem: ModelProblem) -> bool:
    return bool(re.search(arguments.only, f"{problem.model} batch {problem.batch}"))


def chosen(arguments: argparse.Namespace) -> list[Contender]:
    """Ours, and those that are asked for."""
    return [c for c in CONTENDERS if c.name == OURS or re.search(arguments.contenders, c.name)]


def measure(
    problem: ModelProblem, threads: int, arguments: argparse.Namespace, results: dict[str, Any]
) -> dict[str, Any]:
    """Times of all contenders for one model and batch; how far off the float model each is."""
    key = [problem.model, problem.batch, threads]
    calls, reasons = harness.prepare_all(
        chosen(arguments), problem, threads, key, arguments.out, results["crashed"]
    )
    errors = {
        name: relative_error(values(call(), problem), problem) for name, call in calls.items()
    }
    timings = harness.take_turns(calls, CONTENDERS, 0.1 if arguments.quick else 0.5)
    medians = {name: timing.median for name, timing in timings.items()}
    ours = medians[OURS]
    gops = 2 * problem.batch * problem.macs / ours / 1e9
    return {
        "model": problem.model,
        "batch": problem.batch,
        "threads": threads,
        "us": harness.microseconds(timings),
        "errors": errors,
        "reasons": reasons,
        "goals": [reached(goal.factor, goal.over or PEERS, medians) for goal in problem.goals],
        "gops": gops,
        "share_of_peak": gops / results["peaks"][str(threads)]["gops"],
    }


def reached(factor: float, over: tuple[str, ...], medians: dict[str, float]) -> dict[str, Any]:
    """A goal, the fastest of its peers, and how many times faster we are; None where none was timed."""
    timed = [name for name in over if name in medians]
    best = min(timed, key=lambda name: medians[name]) if timed else None
    return {
        "factor": factor,
        "over": list(over),
        "best": best,
        "reached": medians[best] / medians[OURS] if best else None,
    }


def summary(row: dict[str, Any]) -> str:
    goals = [
        f"{g['reached']:.2f}x {g['best']} (target {g['factor']:g})" if g["best"] else "no peer"
        for g in row["goals"]
    ]
    name = f"{row['model']} batch {row['batch']}, {row['threads']} threads"
    return f"{name}: {row['us'][OURS][0] / 1e3:.2f} ms, {', '.join(goals) or 'no target'}"


def make_parser(out: str) -> argparse.ArgumentParser:
    parser = harness.make_parser((__doc__ or "").splitlines()[0], out)
    parser.add_argument("--contenders", default="", help="regular expression on their names")
    return parser


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    harness.in_a_child(make_parser("build/models.json").parse_args(), run)
