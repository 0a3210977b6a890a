"""int8 layers against torch's float32 and bfloat16 ones, timed in turns in one process."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from qkernels import ops
from qkernels.measuring.machine import describe_machine, torch_threads
from qkernels.measuring.timing import Timing, time_in_turns
from qkernels.nn import QuantConv2d, QuantLinear
from qkernels.utils.progress import progress as progress_bar

Call = Callable[[], object]
SCALE = 0.05  # of int8 inputs and outputs; kernels take the same time at any scale


@dataclass(frozen=True)
class LinearCase:
    """x [m, k] times a weight [n, k]."""

    m: int
    k: int
    n: int
    kind: str = "linear"

    @property
    def name(self) -> str:
        return f"{self.m}x{self.k}x{self.n}"

    @property
    def macs(self) -> int:
        return self.m * self.k * self.n

    def calls(self) -> dict[str, Call]:
        layer, x = nn.Linear(self.k, self.n), torch.randn(self.m, self.k)
        half, x_half = nn.Linear(self.k, self.n, dtype=torch.bfloat16), x.bfloat16()
        dynamic = QuantLinear.from_float(layer)
        static = QuantLinear.from_float(
            layer, activation="static", input_scale=SCALE, input_zero_point=0
        )
        q = ops.quantize(x, torch.tensor(SCALE), torch.tensor(0, dtype=torch.int32))
        return {
            "fp32": lambda: layer(x),
            "bf16": lambda: half(x_half),
            "dynamic": lambda: dynamic(x),
            "static": lambda: static(x),
            "int8 to int8": chained_call(static, q, SCALE),
        }


@dataclass(frozen=True)
class ConvCase:
    """A square kernel on [batch, channels, size, size], padded so that stride 1 keeps the size."""

    kind: str
    kernel: int
    channels: int
    outputs: int
    size: int
    stride: int = 1
    groups: int = 1
    batch: int = 1
    dilation: int = 1

    @property
    def padding(self) -> int:
        return self.dilation * (self.kernel // 2)

    @property
    def name(self) -> str:
        step = f" s{self.stride}" if self.stride > 1 else ""
        step += f" d{self.dilation}" if self.dilation > 1 else ""
        shape = f"{self.kernel}x{self.kernel}{step}"
        if self.groups == self.channels:
            times = f" x{self.outputs // self.groups}" if self.outputs > self.groups else ""
            return f"{shape} {self.channels}{times}@{self.size} depthwise batch {self.batch}"
        groups = f" groups {self.groups}" if self.groups > 1 else ""
        return f"{shape} {self.channels}-{self.outputs}@{self.size}{groups} batch {self.batch}"

    @property
    def macs(self) -> int:
        pixels = math.ceil(self.size / self.stride) ** 2
        taps = self.channels // self.groups * self.kernel**2
        return self.batch * pixels * self.outputs * taps

    def calls(self) -> dict[str, Call]:
        layer = self.float_layer()
        x = torch.randn(self.batch, self.channels, self.size, self.size)
        last, layer_last = _channels_last(x), _channels_last(copy.deepcopy(layer))
        half, x_half = copy.deepcopy(layer_last).bfloat16(), last.bfloat16()
        static = QuantConv2d.from_float(
            layer, activation="static", input_scale=SCALE, input_zero_point=0
        )
        q = _channels_last(ops.quantize(x, torch.tensor(SCALE), torch.tensor(0, dtype=torch.int32)))
        return {
            "fp32": lambda: layer(x),
            "fp32 channels-last": lambda: layer_last(last),
            "bf16": lambda: half(x_half),
            "static": lambda: static(last),
            "int8 to int8": chained_call(static, q, SCALE),
        }

    def float_layer(self) -> nn.Conv2d:
        return nn.Conv2d(
            self.channels,
            self.outputs,
            self.kernel,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )


Case = LinearCase | ConvCase


@dataclass(frozen=True)
class BenchRow:
    """One int8 form of one case. Times are microseconds a call; ratios above 1: int8 is faster."""

    case: str
    kind: str
    form: str
    threads: int
    median_us: float
    p10_us: float
    p90_us: float
    gops: float  # 1e9 operations a second, a multiply-add counting as two
    fp32_us: float  # torch's float32 layer, in its faster memory layout
    bf16_us: float
    fp32_layout: str

    @property
    def ratio(self) -> float:
        """How many times faster than float32."""
        return self.fp32_us / self.median_us

    @property
    def bf16_ratio(self) -> float:
        """How many times faster than bfloat16."""
        return self.bf16_us / self.median_us


LINEAR_CASES = (
    LinearCase(1, 8, 8, "small call"),  # the cost of a call: there is next to nothing to compute
    LinearCase(8, 8, 8, "small call"),
    LinearCase(1, 1024, 1024),
    LinearCase(1, 4096, 4096),
    LinearCase(16, 1024, 4096),
    LinearCase(64, 768, 3072),
    LinearCase(128, 1024, 1024),
    LinearCase(512, 768, 3072),
    LinearCase(1024, 1024, 1024),
)
CONV_CASES = (  # kind, kernel, channels, outputs, size, stride, groups
    ConvCase("3x3", 3, 64, 64, 56),
    ConvCase("3x3", 3, 128, 128, 28),
    ConvCase("3x3", 3, 256, 256, 14),
    ConvCase("3x3", 3, 512, 512, 7),
    ConvCase("3x3", 3, 64, 128, 56, 2),
    ConvCase("3x3", 3, 256, 512, 14, 2),
    ConvCase("1x1", 1, 64, 256, 56),
    ConvCase("1x1", 1, 256, 64, 56),
    ConvCase("1x1", 1, 1024, 256, 14),
    ConvCase("1x1", 1, 512, 1024, 28, 2),
    ConvCase("stem", 7, 3, 64, 224, 2),
    ConvCase("stem", 3, 3, 32, 224, 2),
    ConvCase("stem", 3, 3, 64, 32),
    ConvCase("depthwise", 3, 32, 32, 112, 1, 32),
    ConvCase("depthwise", 3, 192, 192, 28, 1, 192),
    ConvCase("depthwise", 3, 144, 144, 56, 2, 144),
    ConvCase("depthwise", 5, 672, 672, 14, 1, 672),
    ConvCase("grouped", 3, 128, 128, 56, 1, 32),
)


def all_cases() -> list[Case]:
    """Every case of the benchmark: linear layers, then convolutions at batch 1 and 16."""
    convs = [replace(case, batch=batch) for case in CONV_CASES for batch in (1, 16)]
    return [*LINEAR_CASES, *convs]


def run_bench(
    only: str = "",
    *,
    threads: Iterable[int] = (1,),
    quick: bool = False,
    progress: bool = True,
) -> list[BenchRow]:
    """Time every case whose kind and name hold the text `only`; random weights and inputs.

    `quick` takes a tenth of the time and is as much less sure. torch's thread count is restored
    afterwards. Raises ValueError if no case is left or a thread count is below 1.
    """
    cases = [case for case in all_cases() if only in f"{case.kind} {case.name}"]
    if not cases:
        raise ValueError(f"no case holds {only!r}: leave it out to see all cases")
    counts = list(threads)
    rows: list[BenchRow] = []
    with progress_bar("timing", len(cases) * len(counts), enabled=progress) as advance:
        for count in counts:
            with torch_threads(count):
                for case in cases:
                    rows += _run_case(case, count, quick)
                    advance(1, case.name)
    return rows


def geometric_means(rows: Iterable[BenchRow]) -> dict[tuple[str, str, int], float]:
    """(kind, form, threads) -> geometric mean of the ratios to float32."""
    groups: dict[tuple[str, str, int], list[float]] = {}
    for row in rows:
        groups.setdefault((row.kind, row.form, row.threads), []).append(row.ratio)
    return {key: math.exp(sum(map(math.log, r)) / len(r)) for key, r in groups.items()}


def bench_results(rows: list[BenchRow], command: str) -> dict[str, Any]:
    """Everything as JSON-able values: the machine, the command and the rows with their ratios."""
    return {
        "machine": describe_machine(),
        "command": command,
        "rows": [asdict(row) | {"ratio": row.ratio, "bf16_ratio": row.bf16_ratio} for row in rows],
    }


def _run_case(case: Case, threads: int, quick: bool) -> list[BenchRow]:
    torch.manual_seed(0)
    seconds, rounds = (0.03, 3) if quick else (0.3, 10)
    with torch.inference_mode():
        times = time_in_turns(case.calls(), seconds=seconds, rounds=rounds)
    layouts = {name: times.pop(name) for name in list(times) if name.startswith("fp32")}
    best = min(layouts, key=lambda name: layouts[name].median)
    bf16 = times.pop("bf16")
    return [
        _row(case, form, threads, timing, best, layouts[best], bf16)
        for form, timing in times.items()
    ]


def _row(
    case: Case, form: str, threads: int, int8: Timing, layout: str, fp32: Timing, bf16: Timing
) -> BenchRow:
    return BenchRow(
        case=case.name,
        kind=case.kind,
        form=form,
        threads=threads,
        median_us=int8.median * 1e6,
        p10_us=int8.percentile(10) * 1e6,
        p90_us=int8.percentile(90) * 1e6,
        gops=2 * case.macs / int8.median / 1e9,
        fp32_us=fp32.median * 1e6,
        bf16_us=bf16.median * 1e6,
        fp32_layout=layout.removeprefix("fp32").strip() or "contiguous",
    )


def chained_call(layer: QuantLinear | QuantConv2d, q: Tensor, output_scale: float) -> Call:
    """The layer as inside a chain: int8 `q` in, int8 out with `output_scale` and zero point 0."""
    tensors = (q, layer.packed_weight, layer.weight_scale, layer.bias)
    ranges = (layer.input_scale, layer.input_zero_point, True)
    epilogue = (None, 1.0, 0, None, None, torch.int8, output_scale, 0)
    if isinstance(layer, QuantLinear):
        linear = torch.ops.qkernels.linear
        return lambda: linear(*tensors, *ranges, *epilogue)
    padding = [layer.padding[0]] * 4
    geometry = (layer.kernel_size, layer.stride, padding, layer.dilation, layer.groups, "zeros")
    conv2d = torch.ops.qkernels.conv2d
    return lambda: conv2d(*tensors, *ranges, *geometry, *epilogue)


def _channels_last(value: Any) -> Any:
    return value.to(memory_format=torch.channels_last)
