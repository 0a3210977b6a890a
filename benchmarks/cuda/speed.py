"""Layers on a device beside what torch itself offers for them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qkernels as qk
from qkernels import ops

FLUSH = (
    160 << 20
)  # bytes of weights to go through before one is used again: three times the L2 cache of an H200
LINEARS = [  # M, N, K
    *((m, 4096, 4096) for m in (1, 16, 64, 512)),
    *((m, 28672, 4096) for m in (1, 16, 64, 2048)),
    *((m, m, m) for m in (1024, 4096, 8192)),
]
CONVS = [  # batch, C, OC, size, kernel, stride, groups
    (64, 3, 64, 224, 7, 2, 1),
    (64, 64, 64, 56, 3, 1, 1),
    (64, 128, 128, 28, 3, 1, 1),
    (64, 256, 256, 14, 3, 1, 1),
    (64, 512, 512, 7, 3, 1, 1),
    (64, 64, 256, 56, 1, 1, 1),
    (64, 1024, 256, 14, 1, 1, 1),
    (64, 512, 512, 28, 3, 1, 512),
]
QUANTIZED = [(16, 4096), (2048, 4096), (16384, 4096)]  # rows, columns of bfloat16


def microseconds(calls: Sequence[Callable[[], Any]], device: str, rounds: int) -> float:
    """Median of one call, taken in turns; on a GPU from a captured graph, so that no launch is waited for."""
    for call in calls:
        call()
    if device != "cuda":
        times = []
        for _ in range(rounds):
            started = time.perf_counter()
            for call in calls:
                call()
            times.append((time.perf_counter() - started) / len(calls))
        return statistics.median(times) * 1e6
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / len(calls))
    return statistics.median(times) * 1e3


def row(case: str, contenders: dict[str, Any], device: str, rounds: int) -> dict[str, Any]:
    """Microseconds by contender; one that cannot run the case is named with its reason."""
    times: dict[str, Any] = {}
    for name, make in contenders.items():
        try:
            times[name] = round(microseconds(make(), device, rounds), 2)
        except (
            RuntimeError,
            ValueError,
            NotImplementedError,
            torch._dynamo.exc.TorchDynamoException,
        ) as error:
            times[name] = str(error).splitlines()[0][:200]
    return {"case": case, "us": times}


def linear_row(m: int, n: int, k: int, device: str, rounds: int) -> dict[str, Any]:
    copies = max(1, min(16, FLUSH // (n * k))) if device == "cuda" else 1
    x = torch.randn(m, k, device=device, dtype=torch.bfloat16)
    floats = [
        nn.Linear(k, n, bias=False, device=device, dtype=torch.bfloat16) for _ in range(copies)
    ]
    layers = [qk.QuantLinear.from_float(layer) for layer in floats]
    q, scale, zero = ops.quantize_dynamic(x)
    weights = [layer.weight for layer in layers]

    def ours(layer: qk.QuantLinear) -> Callable[[], Tensor]:
        return lambda: layer(x)

    def int8_in(layer: qk.QuantLinear) -> Callable[[], Tensor]:
        tensors = (layer.packed_weight, layer.weight_scale, None, scale, zero)
        return lambda: ops.linear(q, *tensors, out_dtype=torch.bfloat16)

    def int_mm(weight: Tensor, w_scale: Tensor) -> Callable[[], Tensor]:
        return lambda: (torch._int_mm(q, weight.t()) * scale[:, None] * w_scale).bfloat16()

    def compiled(weight: Tensor, w_scale: Tensor) -> Callable[[], Tensor]:
        function = torch.compile(int_mm(weight, w_scale))
        return lambda: function()

    contenders = {
        "qkernels, bf16 in": lambda: [ours(layer) for layer in layers],
        "qkernels, int8 in": lambda: [int8_in(layer) for layer in layers],
        "torch bf16": lambda: [lambda f=f: f(x) for f in floats],
        "torch._int_mm": lambda: [int_mm(w, lr.weight_scale) for w, lr in zip(weights, layers, strict=True)],
        "torch._int_mm, compiled": lambda: [compiled(weights[0], layers[0].weight_scale)],
    }  # fmt: skip
    return row(f"linear {m}x{n}x{k}", contenders, device, rounds)


def conv_row(
    batch: int, c: int, oc: int, size: int, kernel: int, stride: int, groups: int, device: str, rounds: int
) -> dict[str, Any]:  # fmt: skip
    half = torch.float16 if device == "cuda" else torch.float32
    options = {"stride": stride, "padding": kernel // 2, "groups": groups, "bias": False}
    layer = nn.Conv2d(c, oc, kernel, **options).to(device, half, memory_format=torch.channels_last)
    x = torch.randn(batch, c, size, size, device=device, dtype=half)
    x = x.contiguous(memory_format=torch.channels_last)
    static = qk.QuantConv2d.from_float(
        layer, activation="static", input_scale=0.03, input_zero_point=0
    )
    dynamic = qk.QuantConv2d.from_float(layer)
    q = (x / 0.03).round().clamp(-128, 127).to(torch.int8)
    scale, zero = static.input_scale, static.input_zero_point

    def int8_ends() -> Tensor:
        return ops.conv2d(
            q, static.packed_weight, static.weight_scale, None, scale, zero, kernel_size=[kernel] * 2,
            stride=[stride] * 2, padding=[kernel // 2] * 4, dilation=[1, 1], groups=groups, clamp_min=0.0,
            out_dtype=torch.int8, output_scale=0.05,
        )  # fmt: skip

    torch.backends.cudnn.benchmark = True
    contenders = {
        "qkernels, int8 ends": lambda: [int8_ends],
        "qkernels, static": lambda: [lambda: static(x)],
        "qkernels, dynamic": lambda: [lambda: dynamic(x)],
        f"torch {str(half)[6:]}, channels last": lambda: [lambda: F.relu(layer(x))],
    }
    name = f"conv {kernel}x{kernel} {c}-{oc}@{size} s{stride} g{groups} b{batch}"
    return row(name, contenders, device, rounds)


def quantize_row(rows: int, cols: int, device: str, rounds: int) -> dict[str, Any]:
    x = torch.randn(rows, cols, device=device, dtype=torch.bfloat16)

    def plain() -> tuple[Tensor, Tensor]:
        scale = x.abs().amax(1, keepdim=True).float() / 127
        return (x / scale).round().to(torch.int8), scale

    contenders = {
        "qkernels": lambda: [lambda: ops.quantize_dynamic(x)],
        "torch, eager": lambda: [plain],
        "copy": lambda: [lambda: x.clone()],
    }
    return row(f"quantize rows {rows}x{cols}", contenders, device, rounds)
