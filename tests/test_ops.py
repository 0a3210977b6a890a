"""The torch operators: what torch needs of them, and that they return what the reference says."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qkernels import QuantConv2d, QuantLinear, ops, reference

SCALE, ZERO = torch.tensor(0.05), torch.tensor(-7, dtype=torch.int32)
N, K = 21, 37


def int8(*shape: int, low: int = -128) -> Tensor:
    return torch.randint(low, 128, shape, dtype=torch.int8)


def linear_args(x: Tensor, **options: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    torch.manual_seed(0)
    weight = ops.pack_weight(int8(N, K, low=-127))
    scales = (None, None) if options.pop("dynamic", False) else (SCALE, ZERO)
    return (x, weight, torch.rand(N) + 0.01, torch.randn(N), *scales, True), options


def conv_args(x: Tensor, groups: int = 1, **options: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    torch.manual_seed(0)
    weight = ops.pack_weight(int8(8, x.shape[1] // groups, 3, 3, low=-127), groups)
    geometry = ([3, 3], [2, 1], [1, 1, 0, 1], [1, 1], groups, "zeros")
    return (x, weight, torch.rand(8) + 0.01, torch.randn(8), SCALE, ZERO, False, *geometry), options


IMAGE = torch.randn(2, 4, 9, 8)
PACKED = ops.pack_weight(int8(N, K, low=-127))
POOL_X = int8(2, 5, 8, 9)
SAMPLES: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "quantize": [((torch.randn(3, 4, 5), SCALE, ZERO), {})],
    "quantize_dynamic": [((torch.randn(3, 4, 5), row, row), {}) for row in (True, False)],
    "dequantize": [((int8(3, 5), SCALE, ZERO, torch.bfloat16), {})],
    "pack_weight": [((int8(N, K, low=-127), 1), {}), ((int8(12, 1, 3, 3, low=-127), 12), {})],
    "unpack_weight": [((PACKED, [N, K], 1), {})],
    "linear": [
        linear_args(torch.randn(2, 3, K)),
        linear_args(torch.randn(4, K), dynamic=True, clamp_min=0.0, out_dtype=torch.float16),
        linear_args(int8(4, K), out_dtype=torch.int8, residual=int8(4, N), residual_scale=0.1),
    ],
    "linear_weight_only": [((torch.randn(4, K), PACKED, torch.rand(N) + 0.01, None), {})],
    "conv2d": [
        conv_args(IMAGE),
        conv_args(IMAGE.to(memory_format=torch.channels_last), groups=4),
        conv_args(int8(1, 4, 9, 8), out_dtype=torch.int8),
    ],
    "max_pool2d": [((POOL_X, [3, 2], [2, 2], [1, 1], [1, 1], ceil), {}) for ceil in (True, False)],
    "avg_pool2d": [((POOL_X, 3, [3, 2], [2, 2], [1, 1], False, True), {})],
}


@pytest.mark.parametrize(
    ("name", "sample"), [(name, i) for name, all_ in SAMPLES.items() for i in range(len(all_))]
)
def test_opcheck(name: str, sample: int) -> None:
    args, options = SAMPLES[name][sample]
    torch.library.opcheck(getattr(torch.ops.qkernels, name).default, args, options)


def test_linear_returns_the_reference_through_torch() -> None:
    torch.manual_seed(0)
    x, weight, scale = int8(9, K), int8(N, K, low=-127), torch.rand(N) + 0.01
    y = ops.linear(x, ops.pack_weight(weight), scale, None, SCALE, ZERO)
    assert torch.equal(y, reference.linear(x, weight, scale, SCALE, ZERO, reference.Epilogue()))


class Small(nn.Module):
    """A convolution and a linear layer, as a user stacks them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = QuantConv2d.from_float(nn.Conv2d(3, 8, 3, padding=1))
        self.relu = nn.ReLU()
        self.linear = QuantLinear.from_float(
            nn.Linear(8, 5), activation="static", input_scale=0.02, input_zero_point=-128
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(self.relu(self.conv(x)).mean((2, 3)))
        return y


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_makes_one_graph_with_the_same_bits(backend: str) -> None:
    model, x = Small(), torch.randn(4, 3, 10, 10)
    with torch.inference_mode():
        compiled = torch.compile(model.conv, fullgraph=True, backend=backend)
        assert torch.equal(compiled(x), model.conv(x))
        close = torch.compile(model, fullgraph=True, backend=backend)(x)
        torch.testing.assert_close(close, model(x), rtol=0.05, atol=0.05)


def test_export_keeps_the_batch_free() -> None:
    model = Small()
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = ({0: batch},)
    program = torch.export.export(model, (torch.randn(4, 3, 10, 10),), dynamic_shapes=shapes)
    for size in (1, 2, 7):
        x = torch.randn(size, 3, 10, 10)
        assert torch.equal(program.module()(x), model(x))


def test_autocast_and_inference_mode_leave_the_output_as_the_input_is() -> None:
    layer, x = QuantLinear.from_float(nn.Linear(6, 4)), torch.randn(3, 6)
    plain = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        assert torch.equal(layer(x), plain)
        assert layer(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("layer", ["linear", "conv"])
def test_backward_says_that_layers_are_for_inference(layer: str) -> None:
    model = Small()
    x = torch.randn((2, 8) if layer == "linear" else (2, 3, 5, 5), requires_grad=True)
    y = getattr(model, layer)(x)
    with pytest.raises(RuntimeError, match="for inference"):
        y.sum().backward()


SCRIPT = """
import sys, torch
from torch import nn
from qkernels import QuantConv2d, QuantLinear, ops
torch.manual_seed(0)
torch.set_num_threads(int(sys.argv[2]))
linear, conv = nn.Linear(147, 70), nn.Conv2d(3, 40, 5, 2, 2)
x, image = torch.randn(130, 147), torch.randn(3, 3, 33, 29)
layers = [QuantLinear.from_float(linear), QuantLinear.from_float(linear, activation="weight_only")]
outputs = [layer(x) for layer in layers]
outputs += [QuantConv2d.from_float(conv, symmetric=s)(image) for s in (True, False)]
outputs += [QuantConv2d.from_float(nn.Conv2d(20, 20, 3, groups=20))(torch.randn(2, 20, 9, 9))]
torch.save((ops.cpu_isa(), outputs), sys.argv[1])
"""


def run_with(path: Path, isa: str, threads: int) -> tuple[str, list[Tensor]]:
    environment = {**os.environ, "QKERNELS_MAX_ISA": isa}
    command = [sys.executable, "-c", SCRIPT, str(path), str(threads)]
    subprocess.run(command, env=environment, check=True, timeout=120)
    used, outputs = torch.load(path)
    return used, outputs


def test_every_instruction_set_and_thread_count_gives_the_same_bits(tmp_path: Path) -> None:
    _, expected = run_with(tmp_path / "all", "amx", 1)
    for isa, threads in (("scalar", 2), ("avx2", 1), ("avx512vnni", 2)):
        used, outputs = run_with(tmp_path / isa, isa, threads)
        assert ops.ISAS.index(used) <= ops.ISAS.index(isa)
        for y, y0 in zip(outputs, expected, strict=True):
            assert torch.equal(y, y0), (isa, threads)


@pytest.mark.parametrize(
    ("variable", "known"), [("QKERNELS_MAX_ISA", "scalar"), ("QKERNELS_CONV_PATH", "counted")]
)
def test_an_unknown_instruction_set_or_path_is_refused(variable: str, known: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import qkernels.ops"],
        env={**os.environ, variable: "avx1024"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert f"ValueError: {variable}='avx1024' is unknown; choose one of {known}" in done.stderr


def test_quantized_tensors_of_no_elements_are_fine() -> None:
    args, options = linear_args(torch.randn(0, K))
    assert ops.linear(*args[:-1], **options).shape == (0, N)
    args, options = conv_args(torch.randn(0, 4, 9, 8))
    y = torch.ops.qkernels.conv2d(*args, **options)
    assert y.shape == (0, 8, 4, 8)
    q, scale, _ = ops.quantize_dynamic(torch.randn(0, 3), per_row=False)
    assert q.shape == (0, 3)
    assert scale == 1
