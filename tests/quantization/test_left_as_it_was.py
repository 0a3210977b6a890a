"""What calibration and conversion leave in the user's model: nothing; and in the int8 model: nothing of theirs."""

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qkernels as qk
from qkernels.qat import prepare_qat
from qkernels.quantization import calibrate
from qkernels.quantization.observers import MinMax
from qkernels.recovery import equalize, smooth

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))


class Keeping(nn.Module):
    """A forward that writes to its own state."""

    def __init__(self, write: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.fc, self.head, self.write = nn.Linear(8, 8), nn.Linear(8, 4), write
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("table", None)
        self.cache: dict[Any, Any] = {}
        self.log: list[Any] = []
        self.state = SimpleNamespace(calls=0, by_size={0: []})
        self.position, self.count = None, 0

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.write(self, self.fc(x)))


def in_place(m: Any, x: Tensor) -> Tensor:
    m.calls += 1
    m.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
    return x - m.mean


def anew(m: Any, x: Tensor) -> Tensor:
    m.mean = 0.9 * m.mean + 0.1 * x.mean(0)
    return x - m.mean


def lazy_attribute(m: Any, x: Tensor) -> Tensor:
    if m.position is None:
        m.position = torch.arange(8.0) / 8
    return x + m.position


def lazy_buffer(m: Any, x: Tensor) -> Tensor:
    if m.table is None or m.table.shape[0] < x.shape[0]:
        m.table = torch.linspace(0, 1, x.shape[0])[:, None] * torch.ones(8)
    return x + m.table[: x.shape[0]]


def registered_in_forward(m: Any, x: Tensor) -> Tensor:
    if not hasattr(m, "rope"):
        m.register_buffer("rope", torch.linspace(0, 1, 8), persistent=False)
    return x * m.rope


def cached_by_shape(m: Any, x: Tensor) -> Tensor:
    if x.shape not in m.cache:
        m.cache[x.shape] = torch.ones(x.shape[1:])
    return x + m.cache[x.shape]


def cached_by_depth(m: Any, x: Tensor) -> Tensor:
    bias = m.cache.setdefault(str(x.device), {}).setdefault("bias", m.head.weight.sum(0) * 0.1)
    return x + bias


def growing(m: Any, x: Tensor) -> Tensor:
    m.count += 1
    m.log.append(x.detach())
    return x + sum(len(y) for y in m.log) * 0 + m.count * 0


def on_the_layer(m: Any, x: Tensor) -> Tensor:
    m.fc.last = x
    return x


def in_an_object(m: Any, x: Tensor) -> Tensor:
    m.state.calls += 1
    m.state.by_size.setdefault(x.shape[0], []).append(x * 2)
    return x + m.state.by_size[x.shape[0]][0].mean() * 0


WRITES = [
    in_place, anew, lazy_attribute, lazy_buffer, registered_in_forward, cached_by_shape, cached_by_depth, growing,
    on_the_layer, in_an_object,
]  # fmt: skip


def state_of(model: nn.Module) -> list[Any]:
    """Everything that a forward may change, by value."""
    found: list[Any] = []
    for name, module in model.named_modules():
        buffers = {k: None if b is None else b.clone() for k, b in module._buffers.items()}
        own = {k: v for k, v in vars(module).items() if not k.startswith("_")}
        found.append((name, buffers, {k: repr(v) for k, v in own.items()}))
    return found


def same(one: list[Any], other: list[Any]) -> bool:
    return repr(one) == repr(other)


@pytest.mark.parametrize("write", WRITES, ids=lambda w: w.__name__)
def test_a_model_whose_forward_writes_to_its_state_is_left_as_it_was(write: Any) -> None:
    torch.manual_seed(0)
    model = Keeping(write).train()
    before = state_of(model)
    qk.quantize(model, "static", [X, X[:4]])
    assert same(state_of(model), before)
    calibrate(model, {"fc": MinMax()}, [X])
    assert same(state_of(model), before)
    assert model.training


@pytest.mark.parametrize("write", WRITES, ids=lambda w: w.__name__)
def test_an_int8_model_starts_from_the_float_models_state(write: Any) -> None:
    torch.manual_seed(0)
    model = Keeping(write).eval()
    int8 = qk.quantize(model, "static", [X, X[:4]])
    for x in (X, X, X[:3]):  # step for step, as the state grows
        expected = model(x).detach()
        assert float((int8(x) - expected).norm() / expected.norm()) < 0.03


@pytest.mark.parametrize("write", WRITES, ids=lambda w: w.__name__)
def test_a_calibrated_model_can_be_trained_loaded_and_written(write: Any) -> None:
    torch.manual_seed(0)
    model = Keeping(write).train()
    calibrate(model, {"fc": MinMax()}, [X])
    int8 = qk.quantize(model, "dynamic", example_inputs=X)
    tensors = [*model.parameters(), *model.buffers(), *int8.parameters(), *int8.buffers()]
    assert not any(t.is_inference() for t in tensors)
    model(X).sum().backward()
    model.load_state_dict(model.state_dict())
    int8.load_state_dict(int8.state_dict())
    for buffer in int8.buffers():
        buffer.zero_()


@pytest.mark.parametrize(
    "data", [[X, "no batch"], [X, torch.full((2, 8), float("nan"))], [X, torch.ones(2, 3)]]
)
def test_calibration_that_fails_in_the_middle_leaves_the_model_as_it_was(data: Any) -> None:
    for write in WRITES:
        torch.manual_seed(0)
        model = Keeping(write).train()
        before, hooks = state_of(model), [len(m._forward_pre_hooks) for m in model.modules()]
        with pytest.raises(ValueError):
            qk.quantize(model, "static", data)
        with pytest.raises(ValueError):
            calibrate(model, {"fc": MinMax(), "head": MinMax()}, data)
        assert same(state_of(model), before)
        assert [len(m._forward_pre_hooks) for m in model.modules()] == hooks
        assert model.training and torch.is_grad_enabled()


def test_batch_norm_statistics_and_dropout_flags_stay_under_mixed_modes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 4)).train()
    model[1].eval()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    calibrate(model, {"0": MinMax()}, [X])
    qk.quantize(model, "static", [X])
    assert [m.training for m in model] == [True, False, True, True]
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_gradients_outside_stay_on_and_the_random_state_is_the_users() -> None:
    torch.manual_seed(0)
    model = Keeping(lazy_attribute).eval()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    qk.quantize(model, "static", [X])
    assert torch.equal(torch.rand(3), expected)


def test_what_is_made_under_inference_mode_can_be_loaded_into_trained_and_written(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)
    ).eval()
    x = torch.randn(2, 3, 6, 6)
    path = tmp_path / "m.safetensors"
    with torch.inference_mode():
        int8 = qk.quantize(model, "static", [x])
        qk.save(int8, path)
        made = [int8, qk.load(path, copy.deepcopy(model)), equalize(model, x), smooth(model, [x])]
        made.append(prepare_qat(model, "static", [x]))
    for each in made:
        assert not any(t.is_inference() for t in (*each.parameters(), *each.buffers()))
        each.load_state_dict(each.state_dict())
        each(x)
    made[-1](x).sum().backward()
    assert not any(t.is_inference() for t in (*model.parameters(), *model.buffers()))


def test_a_warning_about_the_answer_points_at_the_users_line() -> None:
    x = torch.randn(64, 8)
    with pytest.warns(UserWarning, match="dB") as caught:
        qk.quantize(
            nn.Sequential(nn.Linear(8, 4)), {"observer": "fixed", "range": (-1e-4, 1e-4)}, [x]
        )
    assert caught[0].filename == __file__


def test_a_forward_that_takes_float_parameters_by_name_is_one_sentence() -> None:
    class ByName(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(nn.functional.linear(x, dict(self.named_parameters())["fc.weight"]))

    with pytest.raises(RuntimeError, match=r"KeyError.*fc\.weight.*exclude"):
        qk.quantize(ByName(), "dynamic", example_inputs=X)
    qk.quantize(ByName(), {"activation": "dynamic", "exclude": ["fc"]}, example_inputs=X)
