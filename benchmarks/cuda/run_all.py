"""Everything to be found out on a machine with a GPU, in three parts of under nine minutes that need no network.

python benchmarks/cuda/run_all.py [--part N] [--only REGEX] [--out DIR] [--commit NAME] [--quick] [--device cuda]

Each part is of use alone, the first most: whether the hardware was read rightly, the bits and the speed of every tile.
A part leaves DIR/part-N.json: for every step the commit, the device, its result or its error; at its end it prints what
was found once more. Each step runs in a process of its own with a time limit; what a cut-off step had finished stays.
A second run skips what is done.
`make_cuda_doc.py` turns DIR into docs/benchmarks-cuda.md; docs/cuda.md says what to carry to such a machine.
`--device cpu` is a rehearsal that shows only that the script works, and that the emulator agrees with micro.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT)]

import checks  # noqa: E402
import cutlass_peer  # noqa: E402
import make_cuda_doc  # noqa: E402
import speed  # noqa: E402
import torch  # noqa: E402

Arguments = argparse.Namespace
Step = tuple[Callable[[Arguments], Any], int]  # and its limit, seconds


def rounds(a: Arguments) -> int:
    return 3 if a.quick else 15


def rows(
    make: Callable[..., Iterator[dict[str, Any]]], cases: list[Any], small: tuple[Any, ...]
) -> Any:
    def step(a: Arguments) -> Iterator[dict[str, Any]]:
        for case in [small] if a.quick else cases:
            yield from make(*case, a.device, rounds(a))

    return step


def cutlass(a: Arguments) -> cutlass_peer.Product:
    checks.need_gpu(a)
    try:
        return cutlass_peer.load(ROOT / "build/cuda")
    except (cutlass_peer.Unavailable, OSError, subprocess.CalledProcessError) as error:
        raise checks.Skipped(str(error)) from error


def cutlass_agrees(a: Arguments) -> dict[str, Any]:
    """The peer computes what we compute, tile by tile."""
    product = cutlass(a)
    for m in (1, 32, 64, 128, 300):
        for n in (1024, 8192):
            q = torch.randint(-128, 128, (m, 512), dtype=torch.int8, device="cuda")
            w = torch.randint(-127, 128, (n, 512), dtype=torch.int8, device="cuda")
            scale, w_scale = torch.rand(m, device="cuda"), torch.rand(n, device="cuda")
            sums = q.double() @ w.double().t()
            expected = (sums * scale[:, None].double() * w_scale.double()).float()
            error = (product(q, w, scale, w_scale).float() - expected).norm() / expected.norm()
            assert error < 0.01, f"M={m}, N={n}: the relative error is {float(error)}"
    return {"tiles": list(cutlass_peer.TILES)}


def speed_linear(a: Arguments) -> Iterator[dict[str, Any]]:
    try:
        peer = cutlass(a)
    except checks.Skipped:
        peer = None
    for late in (False, True):
        for case in [(8, 32, 32)] if a.quick else speed.LINEARS:
            yield from speed.linear_row(*case, a.device, rounds(a), peer, late)


def speed_tiles(a: Arguments) -> Iterator[dict[str, Any]]:
    """Every tile, forced, on shapes that several could take: what `csrc/cuda/plan.h` is to be told."""
    for tile in checks.TILES:
        statement = (
            f"import speed; speed.tile_times({tile!r}, {a.device!r}, {rounds(a)}, {a.quick})"
        )
        for row in checks.with_tile(tile, statement, 30):
            yield row if "us" in row else {"case": "all the others", "us": {tile: row["error"]}}


PARTS: list[dict[str, Step]] = [
    {
        "load": (checks.load, 40),
        "micro": (checks.micro, 60),
        "exact_linear": (checks.bits("linear", 15), 40),
        "exact_tiles": (checks.bits_of_every_tile, 100),
        "speed_tiles": (speed_tiles, 100),
        "speed_linear": (speed_linear, 100),
        "speed_conv2d": (rows(speed.conv_row, speed.CONVS, (1, 8, 8, 9, 3, 1, 1)), 50),
        "exact_conv2d": (checks.bits("conv2d", 20), 45),
    },
    {
        "profile": (checks.profile, 80),
        "exact_rest": (checks.bits("rest", 15), 40),
        "exact_models": (checks.bits_of_models, 40),
        "streams_and_graphs": (checks.streams_and_graphs, 30),
        "speed_models": (rows(speed.model_row, speed.MODELS, ("resnet8", 2, 32)), 200),
        "speed_quantize": (rows(speed.quantize_row, speed.QUANTIZED, (16, 32)), 25),
        "cutlass": (cutlass_agrees, 20),
        "compile": (checks.compile_whole, 60),
    },
    {
        "memcheck_hopper": (checks.sanitizer("memcheck", "hopper"), 60),
        "synccheck_hopper": (checks.sanitizer("synccheck", "hopper"), 60),
        "memcheck": (checks.sanitizer("memcheck"), 80),
        "racecheck": (checks.sanitizer("racecheck"), 80),
        "synccheck": (checks.sanitizer("synccheck"), 70),
        "initcheck": (checks.sanitizer("initcheck"), 70),
    },
]
STEPS: dict[str, Step] = {name: step for part in PARTS for name, step in part.items()}


# ---- records


def file_of(a: Arguments, step: str) -> Path:
    part = next(i for i, steps in enumerate(PARTS, 1) if step in steps)
    return a.out / f"part-{part}.json"


def records(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def write(a: Arguments, step: str, outcome: dict[str, Any], seconds: float) -> None:
    path, aside = file_of(a, step), a.out / "aside.json"
    record = {"commit": a.commit, "device": a.device, "seconds": round(seconds, 1), **outcome}
    aside.write_text(json.dumps(records(path) | {step: record}, indent=1) + "\n")
    aside.replace(path)


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:  # no git there
        return "unknown"
    return done.stdout.strip() or "unknown"


def summary(a: Arguments) -> str:
    """All that was found, a line a step or case, short enough for the end of a log that is all one gets back."""
    lines = []
    for path in sorted(a.out.glob("part-*.json")):
        for name, record in records(path).items():
            lines.append(f"{name}: {record['status']}; {make_cuda_doc.remark(record)[:300]}")
            if name.startswith("speed"):
                for row in make_cuda_doc.merged(record.get("result") or []):
                    times = ", ".join(f"{k} {str(v)[:40]}" for k, v in row["us"].items())
                    lines.append(f"  {row['case']}: {times}")
    return "\n".join(lines)


# ---- running them


def run_step(a: Arguments, name: str) -> None:
    started, rows = time.monotonic(), []

    def leave(outcome: dict[str, Any]) -> None:
        write(a, name, outcome, time.monotonic() - started)

    try:
        result = STEPS[name][0](a)
        if inspect.isgenerator(result):
            for row in result:
                rows.append(row)
                leave({"status": "cut off", "result": rows})
            result = rows
        leave({"status": "ok", "result": result})
    except checks.Skipped as reason:
        leave({"status": "skipped", "reason": str(reason)})
    except Exception:
        leave({"status": "failed", "error": traceback.format_exc()[-4000:], "result": rows})


def run_apart(a: Arguments, name: str) -> dict[str, Any]:
    """The step in a process of its own, ended with all that it started at its limit."""
    limit = STEPS[name][1]
    command = [sys.executable, __file__, *sys.argv[1:], "--commit", a.commit, "--step", name]
    before = records(file_of(a, name)).get(name)
    process = subprocess.Popen(command, start_new_session=True)
    try:
        error = f"ended with {code}" if (code := process.wait(limit)) else ""
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        error = f"stopped after {limit} s"
    if records(file_of(a, name)).get(name) == before:
        write(a, name, {"status": "failed", "error": error}, limit)
    record: dict[str, Any] = records(file_of(a, name))[name]
    return record


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    out = ROOT / "build/cuda"
    parser.add_argument("--out", type=Path, default=out, help="folder of the results")
    parser.add_argument("--part", type=int, choices=range(1, len(PARTS) + 1), help="only this one")
    parser.add_argument("--only", default=".", help="a regular expression for the steps to run")
    parser.add_argument("--commit", help="what is measured, where git is not")
    parser.add_argument("--quick", action="store_true", help="a few small problems a step")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    a = parser.parse_args()
    a.commit = a.commit or commit()
    a.out = a.out.resolve()
    a.out.mkdir(parents=True, exist_ok=True)
    if a.step:
        run_step(a, a.step)
        return 0
    if a.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU here; --device cpu rehearses the script")
    failed = 0
    for name in PARTS[a.part - 1] if a.part else STEPS:
        done = records(file_of(a, name)).get(name, {}).get("status") == "ok"
        if done or not re.search(a.only, name):
            continue
        record = run_apart(a, name)
        failed += record["status"] in ("failed", "cut off")
        print(f"{name:20} {record['status']:8} {record['seconds']:6.1f} s", flush=True)
    print(summary(a))
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
