"""Everything to be found out on a machine with a GPU, in one command of under 25 minutes that needs no network.

python benchmarks/cuda/run_all.py [--out DIR] [--only REGEX] [--quick] [--device cuda]

Each step runs in a process of its own with a time limit and writes DIR/<step>.json when it ends: the commit, the
device, its result or its error. A second run skips what is done, so a partial run leaves what it finished.
`--device cpu` is a rehearsal that shows only that the script works.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT)]

import exact  # noqa: E402
import speed  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

import qkernels as qk  # noqa: E402
from qkernels.machine import describe_machine  # noqa: E402


class Skipped(Exception):
    """A step that this machine cannot run; the message is the reason."""


def need_gpu(a: argparse.Namespace) -> None:
    if a.device != "cuda":
        raise Skipped("needs a GPU")


def need_tool(name: str) -> str:
    tool = shutil.which(name, path=f"{os.environ['PATH']}:/usr/local/cuda/bin")
    if tool is None:
        raise Skipped(f"{name} is not installed")
    return tool


def small_model(device: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    layers = [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 64, 40)]
    model = nn.Sequential(*layers)
    x = torch.randn(4, 16, 8, 8, device=device)
    return qk.quantize(model, "dynamic")[0].to(device), x


# ---- steps


def load(a: argparse.Namespace) -> dict[str, Any]:
    """The library loads, and a model moved to the device returns the CPU's bits."""
    found = describe_machine()
    if a.device == "cuda":
        p = torch.cuda.get_device_properties(0)
        found["gpu"] = {
            "name": p.name,
            "capability": f"{p.major}.{p.minor}",
            "processors": p.multi_processor_count,
        }
        found["torch_cuda"] = torch.version.cuda
    model, x = small_model(a.device)
    assert torch.equal(model(x).cpu(), model.cpu()(x.cpu())), (
        "the model's output differs from the CPU's"
    )
    return found


def exact_linear(a: argparse.Namespace) -> dict[str, Any]:
    return exact.check("linear", a.device, 90, 20 if a.quick else 100_000)


def exact_conv2d(a: argparse.Namespace) -> dict[str, Any]:
    return exact.check("conv2d", a.device, 120, 20 if a.quick else 100_000)


def exact_rest(a: argparse.Namespace) -> dict[str, Any]:
    return exact.check("rest", a.device, 60, 20 if a.quick else 100_000)


def streams_and_graphs(a: argparse.Namespace) -> dict[str, Any]:
    """A side stream, a captured graph replayed on new input, and every device: all as on the default stream."""
    need_gpu(a)
    model, x = small_model("cuda")
    others = [torch.randn_like(x) for _ in range(3)]
    expected = [model(y) for y in others]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        on_side = [model(y) for y in others]
    side.synchronize()
    graph, still = torch.cuda.CUDAGraph(), x.clone()
    with torch.cuda.graph(graph):
        captured = model(still)
    for y, e, s in zip(others, expected, on_side, strict=True):
        still.copy_(y)
        graph.replay()
        assert torch.equal(captured, e), "the replayed graph differs"
        assert torch.equal(s, e), "a side stream differs"
    for index in range(torch.cuda.device_count()):
        there = small_model(f"cuda:{index}")[0]
        y = there(others[0].to(f"cuda:{index}"))
        assert torch.equal(y.to("cuda:0"), expected[0]), f"cuda:{index} differs"
    return {"graphs": len(others), "devices": torch.cuda.device_count()}


def compile_whole(a: argparse.Namespace) -> dict[str, Any]:
    """torch.compile makes one graph of a layer and keeps its bits."""
    model, x = small_model(a.device)
    layer = model[0]
    with torch.inference_mode():
        compiled = torch.compile(layer, fullgraph=True)
        assert torch.equal(compiled(x), layer(x)), "the compiled layer differs"
    return {"fullgraph": True}


def sanitizer(tool: str) -> Callable[[argparse.Namespace], dict[str, Any]]:
    def step(a: argparse.Namespace) -> dict[str, Any]:
        need_gpu(a)
        command = [
            need_tool("compute-sanitizer"),
            "--tool",
            tool,
            "--error-exitcode",
            "9",
            "--kernel-regex",
            "kns=qk",
        ]
        script = (
            f"import sys; sys.path[:0] = {sys.path[:2]}; import exact\n"
            "for kind in exact.SOME: exact.check(kind, 'cuda', 40, 6)"
        )
        done = subprocess.run(
            [*command, sys.executable, "-c", script], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
        return {"summary": done.stdout.strip().splitlines()[-1]}  # fmt: skip

    return step


def rows(
    make: Callable[..., dict[str, Any]], cases: list[Any]
) -> Callable[[argparse.Namespace], Any]:
    def step(a: argparse.Namespace) -> list[dict[str, Any]]:
        chosen = [tuple(min(v, 32) for v in cases[0])] if a.quick else cases
        return [make(*case, a.device, 3 if a.quick else 30) for case in chosen]

    return step


def profile(a: argparse.Namespace) -> dict[str, Any]:
    """Nsight Compute's report of a GEMM, a convolution and a skinny GEMM, beside the JSON."""
    need_gpu(a)
    report = a.out / "profile"
    command = [
        need_tool("ncu"),
        "--set",
        "full",
        "-f",
        "-o",
        str(report),
        "-k",
        "regex:gemm_kernel|skinny_kernel",
        "-c",
        "3",
    ]
    script = (
        f"import sys; sys.path[:0] = {sys.path[:2]}; import speed\n"
        "speed.linear_row(4096, 4096, 4096, 'cuda', 1); speed.linear_row(1, 4096, 4096, 'cuda', 1)\n"
        "speed.conv_row(64, 128, 128, 28, 3, 1, 1, 'cuda', 1)"
    )
    subprocess.run([*command, sys.executable, "-c", script], check=True)
    return {"report": report.with_suffix(".ncu-rep").name}


STEPS: dict[str, tuple[Callable[[argparse.Namespace], Any], int]] = {  # and its limit, seconds
    "load": (load, 90),
    "exact_linear": (exact_linear, 150),
    "exact_conv2d": (exact_conv2d, 180),
    "exact_rest": (exact_rest, 90),
    "streams_and_graphs": (streams_and_graphs, 60),
    "compile": (compile_whole, 120),
    "memcheck": (sanitizer("memcheck"), 150),
    "racecheck": (sanitizer("racecheck"), 150),
    "speed_linear": (rows(speed.linear_row, speed.LINEARS), 180),
    "speed_conv2d": (rows(speed.conv_row, speed.CONVS), 150),
    "speed_quantize": (rows(speed.quantize_row, speed.QUANTIZED), 60),
    "profile": (profile, 120),
}

# ---- running them


def commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"  # fmt: skip


def run_step(name: str, a: argparse.Namespace) -> dict[str, Any]:
    try:
        return {"status": "ok", "result": STEPS[name][0](a)}
    except Skipped as reason:
        return {"status": "skipped", "reason": str(reason)}
    except Exception:
        return {"status": "failed", "error": traceback.format_exc()[-4000:]}


def write(a: argparse.Namespace, name: str, outcome: dict[str, Any], seconds: float) -> None:
    record = {
        "step": name,
        "commit": commit(),
        "device": a.device,
        "seconds": round(seconds, 1),
        **outcome,
    }
    (a.out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


def done_before(a: argparse.Namespace, name: str) -> bool:
    path = a.out / f"{name}.json"
    return path.exists() and json.loads(path.read_text())["status"] == "ok"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=ROOT / "build/cuda", help="folder of the results"
    )
    parser.add_argument("--only", default=".", help="a regular expression for the steps to run")
    parser.add_argument("--quick", action="store_true", help="a few small problems a step")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    if a.step:
        started = time.monotonic()
        write(a, a.step, run_step(a.step, a), time.monotonic() - started)
        return 0
    if a.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU here; --device cpu rehearses the script")
    failed = 0
    for name, (_, limit) in STEPS.items():
        if not re.search(a.only, name) or done_before(a, name):
            continue
        try:
            subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--step", name], timeout=limit, check=True
            )
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
            write(a, name, {"status": "failed", "error": str(error)[-500:]}, limit)
        record = json.loads((a.out / f"{name}.json").read_text())
        failed += record["status"] == "failed"
        print(f"{name:20} {record['status']:8} {record['seconds']:6.1f} s", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
