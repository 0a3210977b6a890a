"""Models that are hard to build again: state with a version, factories that run, lazy modules, caches."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qkernels as qk

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def check(make: Callable[[], nn.Module], x: Any, path: Path, scheme: str = "static") -> nn.Module:
    """Quantize, save, load through the factory, into a fresh model and into one on meta; returns the int8 model."""
    torch.manual_seed(0)
    model = make().eval()
    int8 = qk.quantize(model, scheme, [x])
    qk.save(int8, path)
    expected = int8(x)
    torch.manual_seed(1)
    for place in (make, make(), int8):
        loaded = qk.load(path, place)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            answer = loaded(x)
        assert torch.equal(answer, expected)
        qk.save(loaded, path)
    return int8


class Versioned(nn.Module):
    """As torchvision's MNASNet: another layout in state dicts of the first version, which it loads with a warning."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, *more: Any
    ) -> None:
        version = local_metadata.get("version")
        if version not in (1, 2):
            raise ValueError(f"_version must be 1 or 2, got {version}")
        if version == 1:
            warnings.warn("old weights: the layout is changed", stacklevel=2)
            self.norm = nn.BatchNorm2d(8)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *more)


class VersionedPart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = Versioned(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Renamed(nn.Module):
    """Its state dict has other names than its parameters, both ways."""

    _version = 3

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.gain = nn.Linear(8, 8), nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * self.gain

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, *more: Any
    ) -> None:
        if local_metadata.get("version", 1) < 3 and prefix + "scale" in state_dict:
            state_dict[prefix + "gain"] = state_dict.pop(prefix + "scale")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *more)


class WithHooks(nn.Module):
    """State dict hooks of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.gain = nn.Linear(8, 8), nn.Parameter(torch.rand(8))
        self.loads: list[str] = []
        self.register_load_state_dict_pre_hook(lambda m, state, prefix, *_: m.loads.append(prefix))
        self.register_load_state_dict_post_hook(lambda m, keys: m.loads.append("post"))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * self.gain


class RunsInConstructor(nn.Module):
    """As SSD heads: finds the width of its head by running its body."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU())
        with torch.no_grad():
            width = self.body.eval()(torch.zeros(1, 3, 8, 8)).flatten(1)
            assert float(width.sum()) != 1.5
        self.head = nn.Linear(width.shape[1], 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(1))


class ReadsValues(nn.Module):
    """A constructor that looks at what it drew."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        if self.fc.weight.abs().max().item() > 0.3:
            self.fc.weight.data.mul_(0.5)
        self.register_buffer("order", self.fc.weight[:, 0].argsort(), persistent=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)[:, self.order]


class Initialized(nn.Module):
    """Constructors that copy, orthogonalize and numpy their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.twin = nn.Linear(8, 8), nn.Linear(8, 8)
        nn.init.orthogonal_(self.fc.weight)
        with torch.no_grad():
            self.twin.weight.copy_(self.fc.weight)
            self.fc.bias.copy_(torch.from_numpy(self.twin.weight.numpy().sum(0)))

    def forward(self, x: Tensor) -> Tensor:
        return self.twin(self.fc(x))


class Tables(nn.Module):
    """Buffers computed in the constructor, outside of the state dict, and from parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.register_buffer("rope", torch.linspace(0, 1, 8).cos(), persistent=False)
        self.register_buffer("index", torch.arange(8).flip(0), persistent=False)
        self.scale = torch.tensor([2.0])  # a plain tensor

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x * self.rope)[:, self.index] * self.scale


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = (
            nn.LazyConv2d(8, 3),
            nn.LazyBatchNorm2d(),
            nn.LazyLinear(4),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu().flatten(1))


def lazy_that_ran() -> nn.Module:
    model = Lazy().eval()
    with torch.no_grad():
        model(X)
    return model


class Cached(nn.Module):
    """As LeViT's attention: biases by index, kept in a dict in eval mode for each device."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.out = nn.Linear(8, 8), nn.Linear(8, 4)
        self.biases = nn.Parameter(torch.rand(3, 8))
        self.register_buffer("index", torch.arange(8).flip(0), persistent=False)
        self.cache: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> Cached:
        super().train(mode)
        if mode and self.cache:
            self.cache = {}
        return self

    def bias(self, device: torch.device) -> Tensor:
        if self.training:
            return self.biases[:, self.index]
        key = str(device)
        if key not in self.cache:
            self.cache[key] = self.biases[:, self.index]
        return self.cache[key]

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.q(x) + self.bias(x.device).sum(0))


ROUND_TRIPS: dict[str, tuple[Any, Any]] = {
    "a version": (Versioned, X),
    "a part with a version": (VersionedPart, X),
    "keys renamed by version": (Renamed, ROWS),
    "state dict hooks": (WithHooks, ROWS),
    "a constructor that runs": (RunsInConstructor, X),
    "a constructor that reads values": (ReadsValues, ROWS),
    "a constructor that copies": (Initialized, ROWS),
    "tables outside of the state": (Tables, ROWS),
    "a cache made in eval mode": (Cached, ROWS),
    "lazy modules that ran": (lazy_that_ran, X),
}


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
@pytest.mark.parametrize("case", ROUND_TRIPS)
def test_a_model_comes_back_with_its_bits(case: str, scheme: str, path: Path) -> None:
    check(*ROUND_TRIPS[case], path, scheme)


@pytest.mark.parametrize("exclude", [[], ["head"], ["conv"]], ids=str)
@pytest.mark.parametrize("scheme", ["static", "dynamic"])
def test_a_file_goes_into_lazy_modules_that_never_ran(
    scheme: str, exclude: list[str], path: Path
) -> None:
    torch.manual_seed(0)
    int8 = qk.quantize(lazy_that_ran(), {"activation": scheme, "exclude": exclude}, [X])
    qk.save(int8, path)
    for place in (Lazy, Lazy()):
        loaded = qk.load(path, place)
        assert torch.equal(loaded(X), int8(X))
        assert torch.equal(loaded(X), int8(X))
        assert not any(m._forward_pre_hooks for m in loaded.modules())


def test_a_cache_of_the_float_model_is_not_the_int8_models(path: Path) -> None:
    torch.manual_seed(0)
    model = Cached().eval()
    model(ROWS)  # with its history
    kept = model.cache["cpu"]
    int8 = qk.quantize(model, "static", [ROWS])
    assert model.cache["cpu"] is kept
    int8.biases.data.zero_()
    int8.train().eval()
    assert torch.equal(int8(ROWS), int8.out(int8.q(ROWS)))


def test_two_captures_of_one_model_find_the_same(path: Path) -> None:
    class Levit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.attention = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), Cached()

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(self.norm(self.conv(x)).mean((2, 3)))

    torch.manual_seed(0)
    model = Levit().eval()
    first, second = (qk.quantize(model, "static", [X]) for _ in range(2))
    assert qk.report(first).folded == qk.report(second).folded == [("conv", "norm")]
    assert model.attention.cache == first.attention.cache == {}
    assert torch.equal(first(X), second(X))
    check(Levit, X, path)


def test_a_loaded_model_is_loaded_again_on_another_device_and_keeps_its_version(path: Path) -> None:
    int8 = check(Versioned, X, path)
    state = int8.state_dict()
    assert state._metadata[""]["version"] == 2
    int8.load_state_dict(state)
    on_meta = qk.load(path, Versioned().to("meta"))
    assert torch.equal(on_meta(X), int8(X))


def test_a_constructor_that_fails_for_a_reason_of_its_own_says_that_reason(path: Path) -> None:
    check(Versioned, X, path)

    def broken() -> nn.Module:
        raise FileNotFoundError("weights/base.pt")

    with pytest.raises(FileNotFoundError, match="base"):
        qk.load(path, broken)


def test_functional_use_of_a_loaded_weight_stays_right(path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.fc = nn.Embedding(20, 8), nn.Linear(8, 8)

        def forward(self, ids: Tensor) -> Tensor:
            return F.linear(self.fc(self.table(ids)), self.table.weight)

    int8 = check(Tied, torch.arange(12).view(3, 4), path, "dynamic")
    assert isinstance(int8.table, qk.nn.QuantModule)
