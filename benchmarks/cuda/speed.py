"""Layers on a device beside what torch itself offers for them."""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qkernels as qk
from qkernels import models, ops
from qkernels.quantization.fold import fold_batch_norm_

# Bytes of weights to go through before one is used again: three times the L2 cache of an H200. Images are not
# exchanged: those of the smaller convolutions stay in the cache, for every contender.
FLUSH = 160 << 20
LINEARS = [  # M, N, K
    *((m, 4096, 4096) for m in (1, 16, 64, 128, 512)),
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
MODELS = [("resnet50", 1, 224), ("resnet50", 64, 224)]  # name, batch, image size
QUANTIZED = [(16, 4096), (2048, 4096), (16384, 4096)]  # rows, columns of bfloat16
FEW_ROWS = 16  # of x, up to which weight-only layers are measured too: they multiply in float32
TILE_CASES: list[tuple[str, Callable[[str], list[Callable[[], Tensor]]]]] = [
    *(
        (f"linear {m}x{n}x{k}", lambda device, s=(m, n, k): our_linear(*s, device))
        for m, n, k in [
            (8192, 8192, 8192), (4096, 4096, 4096), (2048, 28672, 4096), (512, 4096, 4096), (128, 4096, 4096),
            (64, 4096, 4096), (64, 28672, 4096), (1024, 1024, 1024),
        ]
    ),
    *(
        (f"conv {s[4]}x{s[4]} {s[1]}-{s[2]}@{s[3]} b{s[0]}", lambda device, s=s: our_conv2d(*s, device))
        for s in [(64, 64, 64, 56, 3), (64, 256, 256, 14, 3), (64, 64, 256, 56, 1), (64, 512, 512, 7, 3)]
    ),
    ("linear 33x32x64", lambda device: our_linear(33, 32, 64, device)),
]  # fmt: skip
AT_LEAST = 20  # calls in a graph: launching it takes as long as a short kernel
SLEEP = 400_000  # cycles, in which everything that is measured is submitted
Row = dict[str, Any]


def microseconds(calls: Sequence[Callable[[], Any]], device: str, rounds: int) -> float:
    """Median of one call, taken in turns; on a GPU from a captured graph of many, so that no launch is waited for."""
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
    turns = -(-AT_LEAST // len(calls))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in list(calls) * turns:
            call()
    times = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(SLEEP)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / (turns * len(calls)))
    return statistics.median(times) * 1e3


def rows(case: str, contenders: dict[str, Any], device: str, rounds: int) -> Iterator[Row]:
    """Microseconds of a contender a row; one that cannot run the case has its reason instead."""
    for name, make in contenders.items():
        found: float | str
        try:
            found = round(microseconds(make(), device, rounds), 2)
        except (
            RuntimeError,
            ValueError,
            NotImplementedError,
            torch._dynamo.exc.TorchDynamoException,
        ) as error:
            found = str(error).splitlines()[0][:200]
        yield {"case": case, "us": {name: found}}


def linear_row(
    m: int,
    n: int,
    k: int,
    device: str,
    rounds: int,
    cutlass: Callable[..., Tensor] | None,
    late: bool,
) -> Iterator[Row]:
    """Microseconds of a linear layer by contender; `late` is the one that takes seconds to compile, alone."""
    copies = max(1, min(16, FLUSH // (n * k))) if device == "cuda" else 1
    x = torch.randn(m, k, device=device, dtype=torch.bfloat16)
    floats = [
        nn.Linear(k, n, bias=False, device=device, dtype=torch.bfloat16) for _ in range(copies)
    ]
    layers = [qk.QuantLinear.from_float(layer) for layer in floats]
    q, scale, zero = ops.quantize_dynamic(x)
    weights = [layer.int8_weight for layer in layers]

    def ours(layer: qk.QuantLinear) -> Callable[[], Tensor]:
        return lambda: layer(x)

    def int8_in(layer: qk.QuantLinear) -> Callable[[], Tensor]:
        tensors = (layer.packed_weight, layer.weight_scale, None, scale, zero)
        return lambda: ops.linear(q, *tensors, out_dtype=torch.bfloat16)

    def int_mm(weight: Tensor, w_scale: Tensor) -> Tensor:
        return (torch._int_mm(q, weight.t()) * scale[:, None] * w_scale).bfloat16()

    def compiled() -> list[Callable[[], Tensor]]:
        torch._dynamo.reset()  # it gives up on a function after a few shapes
        function = torch.compile(int_mm, dynamic=False)
        return [lambda pair=pair: function(*pair) for pair in pairs]

    def peer(weight: Tensor, w_scale: Tensor) -> Callable[[], Tensor]:
        if cutlass is None:
            raise RuntimeError("CUTLASS is not built")
        return lambda: cutlass(q, weight, scale, w_scale)

    pairs = list(zip(weights, [layer.weight_scale for layer in layers], strict=True))

    contenders = {
        "qkernels, bf16 in": lambda: [ours(layer) for layer in layers],
        "qkernels, int8 in": lambda: [int8_in(layer) for layer in layers],
        "torch bf16": lambda: [lambda f=f: f(x) for f in floats],
        "CUTLASS, vLLM's tiles": lambda: [peer(*pair) for pair in pairs],
        "torch._int_mm": lambda: [lambda pair=pair: int_mm(*pair) for pair in pairs],
    }
    if m <= FEW_ROWS:
        only = [qk.QuantLinear.from_float(f, activation="weight_only") for f in floats]
        contenders["qkernels, weight only"] = lambda: [ours(layer) for layer in only]
    if late:
        contenders = {"torch._int_mm, compiled": compiled}
    yield from rows(f"linear {m}x{n}x{k}", contenders, device, rounds)


def conv_row(
    batch: int, c: int, oc: int, size: int, kernel: int, stride: int, groups: int, device: str, rounds: int
) -> Iterator[Row]:  # fmt: skip
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
    yield from rows(name, contenders, device, rounds)


def model_row(name: str, batch: int, size: int, device: str, rounds: int) -> Iterator[Row]:
    """A whole model with random weights: ours compiled, its layers alone, and torch's own in half precision, with batch
    norms folded as ours are, and not. All are captured in graphs: torch.compile's own ("reduce-overhead") add nothing.
    """
    torch.manual_seed(0)
    model, x = models.create(name).eval(), torch.randn(batch, 3, size, size)
    int8 = qk.quantize(model, "static", [x[:2]]).to(device)
    half = torch.float16 if device == "cuda" else torch.float32
    folded = fold_batch_norm_(copy.deepcopy(model), x[:2])
    model, folded = (m.to(device, half, memory_format=torch.channels_last) for m in (model, folded))
    x = x.to(device).contiguous(memory_format=torch.channels_last)
    torch.backends.cudnn.benchmark = True

    def ours(exact: bool) -> list[Callable[[], Tensor]]:
        chained = qk.compile(int8, x, exact=exact)
        return [lambda: chained(x)]

    def in_half(function: Callable[[Tensor], Tensor]) -> list[Callable[[], Tensor]]:
        given = x.to(half)
        return [lambda: function(given)]

    contenders = {
        "qk.compile": lambda: ours(True),
        "qk.compile, not exact": lambda: ours(False),
        "qkernels, layers alone": lambda: [lambda: int8(x)],
        f"torch {str(half)[6:]}, channels last": lambda: in_half(model),
        f"torch {str(half)[6:]}, folded": lambda: in_half(folded),
        f"torch {str(half)[6:]}, folded and compiled": lambda: in_half(torch.compile(folded)),
        f"torch {str(half)[6:]}, compiled": lambda: in_half(torch.compile(model)),
    }
    with torch.inference_mode():
        yield from rows(f"{name} b{batch} {size}x{size}", contenders, device, rounds)


def profiled() -> None:
    """A large product, one of a single row, a 3x3 and a 1x1 convolution, a launch each for a profiler to look at."""
    calls = []
    for m in (4096, 1):
        layer = qk.QuantLinear.from_float(nn.Linear(4096, 4096, device="cuda"))
        q = torch.randint(-127, 128, (m, 4096), dtype=torch.int8, device="cuda")
        scale, zero = torch.ones(m, device="cuda"), torch.zeros(m, dtype=torch.int32, device="cuda")
        calls.append(
            (ops.linear, (q, layer.packed_weight, layer.weight_scale, None, scale, zero), {})
        )
    for c, oc, size, kernel in ((128, 128, 28, 3), (64, 256, 56, 1)):
        pad = kernel // 2
        conv = qk.QuantConv2d.from_float(nn.Conv2d(c, oc, kernel, device="cuda"))
        x = torch.randint(-127, 128, (64, c, size, size), dtype=torch.int8, device="cuda")
        x = x.contiguous(memory_format=torch.channels_last)
        one, zero = torch.ones(1, device="cuda"), torch.zeros(1, dtype=torch.int32, device="cuda")
        scales = (conv.weight_scale, None, one, zero)
        window = {"kernel_size": [kernel] * 2, "stride": [1, 1], "padding": [pad] * 4}
        window["dilation"] = [1, 1]
        calls.append((ops.conv2d, (x, conv.packed_weight, *scales), window))
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    for call, arguments, options in calls:
        call(*arguments, **options)
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


def quantize_row(count: int, cols: int, device: str, rounds: int) -> Iterator[Row]:
    x = torch.randn(count, cols, device=device, dtype=torch.bfloat16)

    def plain() -> tuple[Tensor, Tensor]:
        scale = x.abs().amax(1, keepdim=True).float() / 127
        return (x / scale).round().to(torch.int8), scale

    contenders = {
        "qkernels": lambda: [lambda: ops.quantize_dynamic(x)],
        "torch, eager": lambda: [plain],
        "copy": lambda: [lambda: x.clone()],
    }
    yield from rows(f"quantize rows {count}x{cols}", contenders, device, rounds)


def our_linear(m: int, n: int, k: int, device: str) -> list[Callable[[], Tensor]]:
    """int8 in, bfloat16 out, one scale a row; enough weights to leave the caches."""
    copies = max(1, min(16, FLUSH // (n * k))) if device == "cuda" else 1
    q = torch.randint(-127, 128, (m, k), dtype=torch.int8, device=device)
    scale = torch.rand(m, device=device) + 0.01
    zero = torch.zeros(m, dtype=torch.int32, device=device)
    floats = [nn.Linear(k, n, bias=False, device=device) for _ in range(copies)]
    layers = [qk.QuantLinear.from_float(f) for f in floats]

    def call(layer: qk.QuantLinear) -> Callable[[], Tensor]:
        tensors = (layer.packed_weight, layer.weight_scale, None, scale, zero)
        return lambda: ops.linear(q, *tensors, out_dtype=torch.bfloat16)

    return [call(layer) for layer in layers]


def our_conv2d(
    batch: int, c: int, oc: int, size: int, kernel: int, device: str
) -> list[Callable[[], Tensor]]:
    """int8 in and out, one scale."""
    layer = qk.QuantConv2d.from_float(nn.Conv2d(c, oc, kernel, bias=False, device=device))
    q = torch.randint(-127, 128, (batch, c, size, size), dtype=torch.int8, device=device)
    q = q.contiguous(memory_format=torch.channels_last)
    scale = torch.full((1,), 0.03, device=device)
    zero = torch.zeros(1, dtype=torch.int32, device=device)

    def call() -> Tensor:
        return ops.conv2d(
            q, layer.packed_weight, layer.weight_scale, None, scale, zero, kernel_size=[kernel] * 2, stride=[1, 1],
            padding=[kernel // 2] * 4, dilation=[1, 1], clamp_min=0.0, out_dtype=torch.int8, output_scale=0.05,
        )  # fmt: skip

    return [call]


def tile_times(name: str, device: str, rounds: int, quick: bool = False) -> None:
    """Prints a row a case, of the tile that this process forces."""
    cases = TILE_CASES[-1:] if quick else TILE_CASES
    for case, make in cases:
        for row in rows(case, {name: lambda make=make: make(device)}, device, rounds):
            print(json.dumps(row), flush=True)
