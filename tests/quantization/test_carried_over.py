"""What a layer object carries besides its weights, and who else holds it, after the layer was replaced."""

from __future__ import annotations

import copy
import dataclasses
import functools
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qkernels as qk
from qkernels.qat import convert_qat, prepare_qat


def error(y: Tensor, exact: Tensor) -> float:
    return float((y - exact).detach().norm() / exact.detach().norm())


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def int8_layers(model: nn.Module) -> list[str]:
    return [name for name, m in model.named_modules() if isinstance(m, qk.nn.QuantModule)]


X = torch.randn(32, 16, generator=torch.Generator().manual_seed(7))


# --- a forward on the object ------------------------------------------------------------------


def test_a_layer_whose_forward_was_patched_stays_float_with_a_note() -> None:
    model = mlp()
    model[0].forward = lambda x, m=model[0]: 3 * F.linear(x, m.weight, m.bias)
    int8 = qk.quantize(model, "static", [X])
    assert error(int8(X), model(X)) < 0.02
    assert int8_layers(int8) == ["2"]
    assert any("0" in note and "forward" in note for note in told(int8))


def told(model: nn.Module) -> list[str]:
    report = qk.report(model)
    return [*report.notes, *(f"{r.name}: {r.reason}" for r in report.layers if r.reason)]


def hooked(module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """As accelerate's add_hook_to_module: the old forward is kept beside a new one on the object."""
    module._old_forward = module.forward

    def new_forward(module: Any, *args: Any, **kwargs: Any) -> Any:
        return change(module._old_forward(*args, **kwargs))

    module.forward = functools.update_wrapper(
        functools.partial(new_forward, module), module._old_forward
    )


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
@pytest.mark.parametrize("where", ["layer", "container", "model", "activation"])
def test_a_forward_hooked_as_accelerate_does_goes_on_running(where: str, scheme: str) -> None:
    model = nn.Sequential(mlp(), nn.Linear(4, 4)).eval()
    places = {
        "layer": model[0][0],
        "container": model[0],
        "model": model,
        "activation": model[0][1],
    }
    hooked(places[where], lambda y: 2 * y + 1)
    expected = model(X)
    int8 = qk.quantize(model, scheme, [X])
    assert error(int8(X), expected) < 0.03
    assert len(int8_layers(int8)) == (2 if where == "layer" else 3)


# --- attributes -------------------------------------------------------------------------------


def conv_block(a: int, b: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.SiLU())


class Parsed(nn.Module):
    """A model built by a parser that says on each layer where it reads from, as YOLO's does."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(
            conv_block(3, 8),
            conv_block(8, 8),
            nn.Conv2d(8, 8, 1),
            nn.BatchNorm2d(8),
            nn.Conv2d(16, 4, 1),
        )
        for i, (layer, f) in enumerate(zip(self.model, [-1, -1, -1, -1, [-1, 0]], strict=True)):
            layer.i, layer.f, layer.type = i, f, type(layer).__name__
            layer.np = sum(p.numel() for p in layer.parameters())
        self.save = [0]

    def forward(self, x: Tensor) -> Tensor:
        kept: list[Any] = []
        for m in self.model:
            if m.f != -1:
                x = torch.cat([x if j == -1 else kept[j] for j in m.f], 1)
            x = m(x)
            kept.append(x if m.i in self.save else None)
        return x


IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def test_attributes_that_a_parser_put_on_layers_and_folded_norms_stay(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Parsed().eval()
    int8 = qk.quantize(model, "static", [IMAGES])
    assert error(int8(IMAGES), model(IMAGES)) < 0.05
    assert [m.i for m in int8.model] == [0, 1, 2, 3, 4]
    assert int8.model[4].type == "Conv2d"
    assert qk.report(int8).folded
    qk.save(int8, tmp_path / "m.safetensors")
    for fresh in (Parsed(), Parsed):
        loaded = qk.load(tmp_path / "m.safetensors", fresh)
        assert torch.equal(loaded(IMAGES), int8(IMAGES))


def test_parameters_buffers_and_modules_that_someone_put_on_a_layer_stay() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(16, 16)
            self.fc.scale = nn.Parameter(torch.rand(16))
            self.fc.register_buffer("shift", torch.rand(16))
            self.fc.act = nn.Sequential(nn.Linear(16, 16), nn.Tanh())

        def forward(self, x: Tensor) -> Tensor:
            return self.fc.act(self.fc(x) * self.fc.scale + self.fc.shift)

    torch.manual_seed(0)
    model = Scaled().eval()
    int8 = qk.quantize(model, "static", [X])
    assert error(int8(X), model(X)) < 0.03
    assert int8_layers(int8) == ["fc", "fc.act.0"]
    assert torch.equal(int8.state_dict()["fc.scale"], model.fc.scale)


# --- other references -------------------------------------------------------------------------


class Held(NamedTuple):
    first: nn.Module
    name: str


@dataclasses.dataclass(eq=False)
class Stage:
    layer: nn.Module
    gain: float = 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class FrozenStage:
    layer: nn.Module


class Slotted:
    __slots__ = ("layer",)

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer


class Runner:
    """A plain object with a forward-like method."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def run(self, x: Tensor) -> Tensor:
        return self.layer(x)


HOLDERS: dict[str, tuple[Callable[[Any], Any], Callable[[Any, Tensor], Tensor]]] = {
    "list": (lambda m: [m], lambda h, x: h[0](x)),
    "tuple": (lambda m: (m, 1), lambda h, x: h[0](x)),
    "named tuple": (lambda m: Held(m, "a"), lambda h, x: h.first(x)),
    "dict": (lambda m: {"a": m}, lambda h, x: h["a"](x)),
    "dict key": (lambda m: {m: 1.0}, lambda h, x: next(iter(h))(x)),
    "set": (lambda m: {m}, lambda h, x: next(iter(h))(x)),
    "frozenset": (lambda m: frozenset([m]), lambda h, x: next(iter(h))(x)),
    "nested": (lambda m: [{"a": (m, [m])}], lambda h, x: h[0]["a"][1][0](x)),
    "partial": (lambda m: functools.partial(m), lambda h, x: h(x)),
    "partial of a method": (lambda m: functools.partial(m.__call__), lambda h, x: h(x)),
    "bound call": (lambda m: m.__call__, lambda h, x: h(x)),
    "dataclass": (lambda m: Stage(m), lambda h, x: h.gain * h.layer(x)),
    "frozen dataclass": (lambda m: FrozenStage(m), lambda h, x: h.layer(x)),
    "namespace": (lambda m: SimpleNamespace(layer=m), lambda h, x: h.layer(x)),
    "plain object": (lambda m: Runner(m), lambda h, x: h.layer(x)),
    "method of a plain object": (lambda m: Runner(m).run, lambda h, x: h(x)),
    "slots": (lambda m: Slotted(m), lambda h, x: h.layer(x)),
    "list of plain objects": (lambda m: [Stage(m)], lambda h, x: h[0].layer(x)),
}  # fmt: skip


class Holding(nn.Module):
    """conv, batch norm and head, each called only through what `hold` put around it."""

    def __init__(self, holder: str) -> None:
        super().__init__()
        hold, self.call = HOLDERS[holder]
        self.conv, self.norm, self.head = (
            nn.Conv2d(3, 8, 3, bias=False),
            nn.BatchNorm2d(8),
            nn.Linear(8, 4),
        )
        self.held = [hold(layer) for layer in (self.conv, self.norm, self.head)]

    def forward(self, x: Tensor) -> Tensor:
        x = self.call(self.held[1], self.call(self.held[0], x))
        return self.call(self.held[2], x.relu().mean((2, 3)))


def holding(holder: str) -> Holding:
    torch.manual_seed(0)
    model = Holding(holder)
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.3, 2)
    return model.eval()


@pytest.mark.parametrize("holder", HOLDERS)
def test_layers_that_a_forward_reaches_through_other_objects_are_the_int8_ones(
    holder: str, tmp_path: Path
) -> None:
    model = holding(holder)
    int8 = qk.quantize(model, "static", [IMAGES])
    assert error(int8(IMAGES), model(IMAGES)) < 0.03
    assert int8_layers(int8) == ["conv", "head"]
    before = int8(IMAGES)
    int8.head.weight_scale.mul_(2)
    int8.head.bias = None
    assert not torch.equal(int8(IMAGES), before), "the float layer still answers"
    qk.save(int8, tmp_path / "m.safetensors")
    fresh = Holding(holder)
    loaded = qk.load(tmp_path / "m.safetensors", fresh)
    assert torch.equal(loaded(IMAGES), int8(IMAGES))


def test_a_forward_that_was_bound_before_is_the_int8_layers_and_its_range_is_seen() -> None:
    class Bound(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.head = nn.Linear(16, 16), nn.Linear(16, 4)
            self.run = self.fc.forward  # past every hook

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.run(x))

    torch.manual_seed(0)
    model = Bound().eval()
    int8 = qk.quantize(model, "dynamic")
    assert int8.run.__self__ is int8.fc
    assert 1e-6 < error(int8(X), model(X)) < 0.03
    partly = qk.quantize(model, "static", [X])
    assert int8_layers(partly) == ["fc", "head"]
    assert partly.fc.activation == "static"
    assert 1e-6 < error(partly(X), model(X)) < 0.03


def test_a_layer_in_a_module_that_is_not_registered_is_the_int8_one() -> None:
    class Shadowed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.head = nn.Linear(16, 16), nn.Linear(16, 4)
            self.hidden = [nn.Sequential(self.fc, nn.Tanh())]

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.hidden[0](x))

    torch.manual_seed(0)
    model = Shadowed().eval()
    int8 = qk.quantize(model, "static", [X])
    assert int8.hidden[0][0] is int8.fc
    assert error(int8(X), model(X)) < 0.03


def test_a_module_under_two_names_and_in_a_list_is_one_module_afterwards(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(16, 16)
            self.blocks = nn.ModuleList([self.one, nn.ReLU(), self.one])
            self.walk = list(self.blocks)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.walk:
                x = layer(x)
            return x

    torch.manual_seed(0)
    model = Twice().eval()
    int8 = qk.quantize(model, "static", [X])
    assert int8.one is int8.blocks[0] is int8.blocks[2] is int8.walk[0] is int8.walk[2]
    assert error(int8(X), model(X)) < 0.03
    qk.save(int8, tmp_path / "m.safetensors")
    loaded = qk.load(tmp_path / "m.safetensors", Twice)
    assert loaded.walk[2] is loaded.one
    assert torch.equal(loaded(X), int8(X))


def test_a_function_that_closed_over_a_layer_is_named() -> None:
    class Closing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.head = nn.Linear(16, 16), nn.Linear(16, 4)
            fc = self.fc
            self.steps = [lambda x: fc(x)]

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.steps[0](x))

    torch.manual_seed(0)
    model = Closing().eval()
    int8 = qk.quantize(model, "dynamic")
    assert error(int8(X), model(X)) < 0.03
    assert any("steps" in note and "Linear" in note for note in told(int8))
    in_place = qk.quantize_(Closing().eval(), "dynamic")
    assert any("steps" in note and "stays float" in note for note in told(in_place))


# --- methods and attributes of the user's class -----------------------------------------------


class Tagged(nn.Linear):
    """A layer whose forward is torch's, with more around it."""

    kind = "projection"
    calls = 0

    def __init__(self, a: int, b: int) -> None:
        super().__init__(a, b)
        self.cost = a * b

    @property
    def fan_in(self) -> int:
        return self.weight.shape[1]

    def scaled(self, x: Tensor) -> Tensor:
        return self(x) / self.fan_in**0.5

    @staticmethod
    def shifted(x: Tensor) -> Tensor:
        return x + 1


class UsesTagged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = Tagged(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        assert self.fc.kind == "projection"
        return self.fc.shifted(self.fc.scaled(x)) * self.fc.cost


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
def test_methods_of_a_layers_own_class_answer_on_its_int8_form(scheme: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = UsesTagged().eval()
    int8 = qk.quantize(model, scheme, [X])
    assert int8_layers(int8) == ["fc"]
    assert error(int8(X), model(X)) < 0.03
    qk.save(int8, tmp_path / "m.safetensors")
    copies = [
        qk.load(tmp_path / "m.safetensors", UsesTagged),
        copy.deepcopy(int8),
        pickle.loads(pickle.dumps(int8)),
    ]
    for each in [int8, *copies]:
        assert isinstance(each.fc, Tagged)
        assert isinstance(each.fc, qk.QuantLinear)
        assert torch.equal(each(X), int8(X))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = int8.fc.nonsense


# --- hooks ------------------------------------------------------------------------------------


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6()
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.act(self.norm(self.conv(x)))).flatten(1))


PLACES = ["conv", "norm", "act", "pool", "head", ""]
HOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "pre": lambda m: m.register_forward_pre_hook(lambda m, a: (a[0] * 2,)),
    "pre with kwargs": lambda m: m.register_forward_pre_hook(
        lambda m, a, k: ((a[0] * 2, *a[1:]), k), with_kwargs=True
    ),
    "post": lambda m: m.register_forward_hook(lambda m, a, y: y * 2 + 1),
    "post with kwargs, always": lambda m: m.register_forward_hook(
        lambda m, a, k, y: y * 2 + 1, with_kwargs=True, always_call=True
    ),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("hook", HOOKS)
def test_forward_hooks_go_on_changing_what_they_changed(hook: str, place: str) -> None:
    torch.manual_seed(0)
    model = Pooled().eval()
    model.norm.running_mean.normal_()
    plain = model(IMAGES)
    HOOKS[hook](model.get_submodule(place))
    expected = model(IMAGES)
    assert error(plain, expected) > 0.05
    int8 = qk.quantize(model, "static", [IMAGES])
    assert error(int8(IMAGES), expected) < 0.02
    assert len(int8_layers(int8)) == 2


@pytest.mark.parametrize("place", PLACES)
def test_a_hooks_handle_takes_it_off_the_converted_model(place: str) -> None:
    torch.manual_seed(0)
    model, seen = Pooled().eval(), []
    handle = model.get_submodule(place).register_forward_hook(lambda m, a, y: seen.append(1))
    int8 = qk.quantize_(model, "static", [IMAGES])
    seen.clear()
    int8(IMAGES)
    assert len(seen) == 1
    handle.remove()
    int8(IMAGES)
    assert len(seen) == 1


@pytest.mark.parametrize("place", PLACES)
def test_hooks_run_while_a_model_is_trained_for_int8(place: str) -> None:
    torch.manual_seed(0)
    model, seen = Pooled().eval(), []
    model.get_submodule(place).register_forward_hook(lambda m, a, y: seen.append(1))
    prepared = prepare_qat(model, "static", [IMAGES])
    seen.clear()
    prepared(IMAGES)
    assert len(seen) == 1
    converted = convert_qat(prepared)
    seen.clear()
    converted(IMAGES)
    assert len(seen) == 1


def test_methods_of_a_layers_own_class_answer_through_training_for_int8() -> None:
    torch.manual_seed(0)
    model = UsesTagged().eval()
    prepared = prepare_qat(model, "static", [X]).eval()
    assert error(prepared(X), model(X)) < 0.03
    converted = convert_qat(prepared)
    assert torch.equal(converted(X), prepared(X))
    assert isinstance(converted.fc, Tagged)


def test_what_has_no_backward_says_that_its_backward_hooks_are_gone() -> None:
    model = mlp()
    model[0].register_full_backward_hook(lambda m, gi, go: None)
    assert any("0: " in note and "backward" in note for note in told(qk.quantize(model, "dynamic")))


# --- copies of the model in the model ---------------------------------------------------------


def test_a_shadow_copy_in_the_model_is_converted_or_named_and_answers() -> None:
    class Averaged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()
            self.shadow = copy.deepcopy(self.net)
            self.shadow[0].weight.data *= 0.5
            self.teacher = [copy.deepcopy(self.net)]  # kept out of the state dict

        def forward(self, x: Tensor) -> Tensor:
            return self.shadow(x) + self.teacher[0](x)

    model = Averaged().eval()
    int8 = qk.quantize(model, "static", [X])
    assert error(int8(X), model(X)) < 0.03
    assert int8_layers(int8) == ["shadow.0", "shadow.2"]
    assert any("net.0" in note and "never reached" in note for note in told(int8))


def test_the_original_is_left_as_it_was_whatever_holds_its_layers() -> None:
    for holder in HOLDERS:
        model = holding(holder)
        before, state = model(IMAGES), {k: v.clone() for k, v in model.state_dict().items()}
        qk.quantize(model, "static", [IMAGES])
        assert torch.equal(model(IMAGES), before), holder
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
