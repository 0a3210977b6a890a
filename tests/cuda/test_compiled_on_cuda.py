"""`qkernels.compile` for CUDA devices: the chained model as operators, its values followed without a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import qkernels as qk
from qkernels import models
from qkernels.graph.chain import chain_on_device
from qkernels.graph.compiled import CompiledModel
from qkernels.graph.compiling import assembled
from qkernels.graph.trace import trace
from qkernels.modules.calling import example_call
from qkernels.nn import MeanPool2d


class Everything(nn.Module):
    """All that flows as int8: pooling, padding, a join, a residual, a table, and a layer that finds its own scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool = nn.Conv2d(3, 16, 3, 2, 1), nn.MaxPool2d(3, 2, 1)
        self.a, self.b = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 16, 3, padding=1)
        self.join, self.mean = nn.Conv2d(32, 8, 3), nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.stem(x)))
        y = torch.relu(self.b(nn.functional.silu(self.a(x))) + x)
        y = self.join(nn.functional.pad(torch.cat([x, y], 1), (1, 1, 1, 1)))
        return self.head(self.mean(y))


def int8_model(name: str, activation: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = Everything() if name == "everything" else models.create(name)
    x = torch.randn(3, 3, 32, 32)
    calibration = [x] if activation == "static" else None
    return qk.quantize(model.eval(), {"activation": activation}, calibration), x


def operators_only(model: nn.Module, x: Tensor, exact: bool = True) -> CompiledModel:
    """What `compile` makes of a model on a CUDA device."""
    call = example_call(x)
    traced = trace(model, call)
    graph, report = chain_on_device(traced.graph, model, exact)
    return assembled(graph, report, traced, call, None)


@pytest.mark.parametrize("activation", ["static", "dynamic"])
@pytest.mark.parametrize("name", ["everything", "resnet20", "mobilenet_v2"])
def test_operators_keep_every_bit_of_the_layers_and_come_near_the_fast_program(
    name: str, activation: str
) -> None:
    model, x = int8_model(name, activation)
    assert torch.equal(operators_only(model, x)(x), model(x))
    fast, program = operators_only(model, x, exact=False)(x), qk.compile(model, x)(x)
    assert (
        fast - program
    ).norm() < 0.05 * program.norm()  # which has steps that CUDA leaves to torch


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A torch without CUDA refuses ``contiguous`` of a fake CUDA tensor, but not what it does."""

    def contiguous(t: Tensor, memory_format: Any = torch.contiguous_format) -> Tensor:
        same = t.is_contiguous(memory_format=memory_format)
        return t if same else t.clone(memory_format=memory_format)

    monkeypatch.setattr(Tensor, "contiguous", contiguous)
    return torch.device("cuda:0")


class OnDevice(TorchDispatchMode):
    """Counts the tensors that operators return, and finds the one that is elsewhere."""

    seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for t in tree_leaves(result):
            if isinstance(t, Tensor):
                self.seen += 1
                assert t.device.type == "cuda", f"{func} returned a tensor on {t.device}"
        return result


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("activation", ["static", "dynamic"])
def test_no_value_leaves_the_device(cuda: torch.device, activation: str, exact: bool) -> None:
    model, x = int8_model("everything", activation)
    chained, expected = operators_only(model, x, exact), model(x)
    with FakeTensorMode(allow_non_fake_inputs=True):
        chained.to(cuda)
        assert chained.device.type == "cuda"
        with OnDevice() as values:
            y = chained(torch.empty(x.shape, device=cuda))
    assert values.seen >= 10
    assert (y.device.type, y.dtype, y.shape) == ("cuda", expected.dtype, expected.shape)


def test_a_model_on_a_cuda_device_is_compiled_there(cuda: torch.device) -> None:
    with FakeTensorMode():
        x = torch.empty(2, 3, 9, 9, device=cuda)
        layers = [qk.QuantConv2d(3, 8, 3, device=cuda), nn.ReLU(), MeanPool2d(), nn.Flatten()]
        model = nn.Sequential(*layers, qk.QuantLinear(8, 4, device=cuda)).eval()
        chained = qk.compile(model, x, max_batch=4, exact=True)
        assert chained.program is None and chained(x).device.type == "cuda"
        assert chained.report.layers[0].fused == ("1 (relu)",)
        with pytest.raises(
            ValueError, match="batch of 5; the model was made for batches of at most 4"
        ):
            chained(torch.empty(5, 3, 9, 9, device="cuda"))
        with pytest.raises(ValueError, match=r"on cuda:0; compile it on the CPU to save it"):
            chained.save("never.qkp")
        with pytest.raises(ValueError, match=r"on cuda:0, and steps are timed on the CPU only"):
            chained.profile(x)


def test_norms_and_attention_stay_operators_of_torch_on_a_cuda_device(cuda: torch.device) -> None:
    with FakeTensorMode():
        x = torch.empty(2, 6, 16, device=cuda)
        layers = [nn.LayerNorm(16, device=cuda), qk.QuantLinear(16, 8, device=cuda)]
        chained = qk.compile(nn.Sequential(*layers).eval(), x)
    assert chained.report.unfused == ["0 (layer_norm)"]


def test_a_model_compiled_on_the_cpu_says_that_it_stays_there() -> None:
    model, x = int8_model("everything", "static")
    chained = qk.compile(model, x, exact=True)
    expected = chained(x)
    with pytest.raises(ValueError, match="stays there, since its programs do; move the int8 model"):
        chained.to("meta")
    assert torch.equal(chained.float().to("cpu")(x), expected)


def test_a_model_on_two_devices_is_refused() -> None:
    model, x = int8_model("everything", "static")
    model.head.to("meta")
    with pytest.raises(ValueError, match="the model is on cpu and meta; compile the part"):
        qk.compile(model, x, exact=True)


@pytest.mark.parametrize("exact", [True, False])
def test_torch_compile_and_export_go_through_all_operators(exact: bool) -> None:
    model, x = int8_model("everything", "static")
    chained = operators_only(model, x, exact)
    expected = chained(x)
    whole = torch.compile(chained, fullgraph=True, backend="aot_eager")
    exported = torch.export.export(chained, (x,))
    with torch.no_grad():
        assert torch.equal(whole(x), expected)
        assert torch.equal(exported.module()(x), expected)
    kinds = {n.target.name() for n in exported.graph.nodes if "qkernels" in str(n.target)}
    assert kinds >= {"qkernels::conv2d", "qkernels::linear", "qkernels::mean_pool2d"}
    assert ("qkernels::lookup" in kinds) != exact
