"""What must hold on a machine with a GPU before a time means anything: layouts, bits, streams, graphs, clean memory."""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import exact
import micro as readings
import torch
from torch import nn

import qkernels as qk
from qkernels import models, ops
from qkernels.measuring.machine import describe_machine


class Skipped(Exception):
    """A step that this machine cannot run; the message is the reason."""


def need_gpu(a: argparse.Namespace) -> None:
    if a.device != "cuda":
        raise Skipped("needs a GPU")


def need_tool(name: str) -> str:
    try:
        return readings.tool(name)
    except readings.Unavailable as reason:
        raise Skipped(str(reason)) from reason


def in_python(statement: str) -> list[str]:
    """A command of another process that can import what is here."""
    return [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path[:2]}; {statement}"]


def small_model(device: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    layers = [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 64, 40)]
    model = nn.Sequential(*layers).eval()
    x = torch.randn(4, 16, 8, 8)
    return qk.quantize(model, "static", [x]).to(device), x.to(device)


def load(a: argparse.Namespace) -> dict[str, Any]:
    """The library loads, and a model moved to the device returns the CPU's bits."""
    found = describe_machine()
    if a.device == "cuda":
        p = torch.cuda.get_device_properties(0)
        processors, capability = p.multi_processor_count, f"{p.major}.{p.minor}"
        found["gpu"] = {"name": p.name, "capability": capability, "processors": processors}
        found["torch_cuda"] = torch.version.cuda
    model, x = small_model(a.device)
    same = torch.equal(model(x).cpu(), model.cpu()(x.cpu()))
    assert same, "the model's output differs from the CPU's"
    return found


def micro(a: argparse.Namespace) -> dict[str, Any]:
    """Every reading of the hardware by itself: fragments, ldmatrix, descriptors, rounding."""
    folder = a.out / "micro"
    try:
        if a.device == "cuda":
            major, minor = torch.cuda.get_device_capability()
            arch = f"{major}{minor}{'a' if (major, minor) == (9, 0) else ''}"
            program = readings.build_for_device(folder, arch)
        else:
            program = readings.build_for_emulator(folder)
    except readings.Unavailable as reason:
        raise Skipped(str(reason)) from reason
    return {"readings": readings.readings(program)}


def bits(kind: str, seconds: float) -> Callable[[argparse.Namespace], dict[str, Any]]:
    return lambda a: exact.check(kind, a.device, seconds, 20 if a.quick else 100_000)


TILES = tuple(reversed(ops.CUDA_TILES))  # Hopper's first: nothing else rests on so much that is new


def with_tile(tile: str, statement: str, seconds: float) -> Iterator[dict[str, Any]]:
    """The JSON lines that a process with a forced tile prints; then its error, if it ends with one or not in time."""
    command, forced = in_python(statement), {**os.environ, "QKERNELS_CUDA_TILE": tile}
    error = ""
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=seconds, check=False, env=forced
        )
        text = done.stdout
        if done.returncode:
            error = f"ended with {done.returncode}: {done.stderr.decode()[-600:]}"
    except subprocess.TimeoutExpired as late:
        text, error = late.stdout or b"", f"did not end within {seconds} s"
    yield from (json.loads(line) for line in text.decode().splitlines() if line.startswith("{"))
    if error:
        yield {"error": error}


def bits_of_every_tile(a: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The tiles that shapes alone would rarely choose: forced, each in a process of its own."""
    need_gpu(a)
    statement = (
        "import exact, json; [print(json.dumps({'kind': kind} | exact.check(kind, 'cuda', 4, 100_000)), flush=True)"
        " for kind in ('linear', 'conv2d')]"
    )
    failed = []
    for tile in TILES:
        for row in with_tile(tile, statement, 25):
            yield {"tile": tile} | row
            if "error" in row:
                failed.append(tile)
    assert not failed, f"tiles that failed: {', '.join(failed)}"


def bits_of_models(a: argparse.Namespace) -> dict[str, Any]:
    """Whole models, compiled on the device, against their layers on the CPU."""
    names = ["tutorial_cnn"] if a.quick else ["tutorial_cnn", "resnet20", "mobilenet_v2"]
    for name in names:
        torch.manual_seed(0)
        x = torch.randn(5, 3, 32, 32)
        model = qk.quantize(models.create(name).eval(), "static", [x])
        expected, model = model(x), model.to(a.device)
        got = qk.compile(model, x.to(a.device), exact=True)(x.to(a.device)).cpu()
        assert torch.equal(got, expected), f"{name} differs from the CPU"
    return {"models": names}


def streams_and_graphs(a: argparse.Namespace) -> dict[str, Any]:
    """A side stream, a compiled model's graph replayed on new input, every device: all as on the default stream."""
    need_gpu(a)
    layers, x = small_model("cuda")
    model = qk.compile(layers, x, exact=True)
    others = [torch.randn_like(x) for _ in range(3)]
    expected = [layers(y) for y in others]
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
    for index in range(torch.cuda.device_count()):  # while cuda:0 is the current one
        there = small_model(f"cuda:{index}")[0]
        y = there(others[0].to(f"cuda:{index}"))
        assert torch.equal(y.to("cuda:0"), expected[0]), f"cuda:{index} differs"
    return {"graphs": len(others), "devices": torch.cuda.device_count()}


def compile_whole(a: argparse.Namespace) -> dict[str, Any]:
    """torch.compile makes one graph of a layer, on a GPU of a compiled model too, and keeps their bits."""
    model, x = small_model(a.device)
    given: list[nn.Module] = (
        [model[0]] if a.device == "cpu" else [model[0], qk.compile(model, x, exact=True)]
    )
    with torch.inference_mode():
        for module in given:
            whole = torch.compile(module, fullgraph=True)
            assert torch.equal(whole(x), module(x)), f"{type(module).__name__} differs"
    return {"fullgraph": len(given)}


def sanitizer(tool: str, tile: str = "") -> Callable[[argparse.Namespace], dict[str, Any]]:
    """Our kernels on small shapes, with one tile if it is named. The count of initcheck is a result, no error: it also
    counts padding that meets weights of zero.
    """

    def step(a: argparse.Namespace) -> dict[str, Any]:
        need_gpu(a)
        every_kernel = tool == "initcheck"  # who else wrote must be seen
        chosen = [] if every_kernel else ["--kernel-regex", "kns=qk"]
        kinds = ("linear", "conv2d") if tile else tuple(exact.SOME)
        statement = f"import exact; [exact.check(kind, 'cuda', 15, 6) for kind in {kinds}]"
        command = [need_tool("compute-sanitizer"), "--tool", tool, "--error-exitcode", "9", *chosen]
        alone = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # no allocation hides another
        if tile:
            alone["QKERNELS_CUDA_TILE"] = tile
        command += in_python(statement)
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=alone)
        lines = [line for line in done.stdout.splitlines() if line.startswith("=====")]
        assert every_kernel or done.returncode == 0, "\n".join(lines[:40]) + done.stderr[-500:]
        return {"summary": lines[-1].strip("= ") if lines else "no output", "first": lines[1:13]}

    return step


METRICS = {  # of Nsight Compute
    "gpu__time_duration.sum": "time",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "compute, % of peak",
    "gpu__compute_memory_throughput.avg.pct_of_peak_sustained_elapsed": "memory, % of peak",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps active, %",
    "launch__registers_per_thread": "registers",
    "smsp__inst_executed.avg.per_cycle_active": "instructions a cycle and scheduler",
    "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio": "warps waiting for memory",
    "l1tex__data_bank_conflicts_pipe_lsu.sum": "bank conflicts",
}
BESIDES = "l1tex__data_bank_conflicts_pipe_lsu.sum"  # not in the full set


def profile(a: argparse.Namespace) -> dict[str, Any]:
    """Nsight Compute on the kernels of speed.profiled; the full report is beside the JSON."""
    need_gpu(a)
    ncu, report = need_tool("ncu"), a.out / "profile"
    chosen = ["--set", "full", "--metrics", BESIDES, "--profile-from-start", "off"]
    chosen += ["--clock-control", "none"]  # the card as it is
    readings.output_of(
        [ncu, *chosen, "-f", "-o", report, *in_python("import speed; speed.profiled()")]
    )
    file = report.with_suffix(".ncu-rep")
    text = readings.output_of([ncu, "--import", file, "--csv", "--page", "raw"])
    units, *kernels = csv.DictReader(text.splitlines())
    wanted = [name for name in METRICS if name in units]
    rows = [
        {"kernel": k["Kernel Name"][:100]} | {METRICS[n]: f"{k[n]} {units[n]}".strip() for n in wanted}
        for k in kernels
    ]  # fmt: skip
    return {"report": file.name, "kernels": rows}
