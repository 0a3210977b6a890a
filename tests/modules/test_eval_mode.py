"""A model that only answers for a while is afterwards as it was."""

from collections import OrderedDict, defaultdict, deque
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qkernels.modules.eval_mode import answering, eval_mode


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("table", None)
        self.items, self.map, self.names, self.count = [1], {"a": 1}, {"x"}, 0


def test_flags_of_every_module_and_gradients_come_back() -> None:
    model = nn.Sequential(Stateful().eval(), nn.Dropout()).train()
    model[0].norm.eval()
    flags = [m.training for m in model.modules()]
    with answering(model):
        assert not any(m.training for m in model.modules())
        assert not torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    with eval_mode(model):
        assert torch.is_grad_enabled()
    assert [m.training for m in model.modules()] == flags


@pytest.mark.parametrize("fails", [False, True])
def test_everything_that_was_written_inside_is_as_before(fails: bool) -> None:
    model: Any = Stateful()
    norm, items, steps = model.norm, model.items, model.steps
    try:
        with answering(model):
            model.steps += 1
            model.norm.running_mean.fill_(3)
            model.norm = nn.Identity()
            model.table = torch.ones(2)
            model.register_buffer("late", torch.ones(2))
            model.extra, model.count = torch.ones(2), 5
            model.items.append(2)
            model.map["b"] = 2
            model.names.clear()
            model.items = [7]
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert model.norm is norm and model.items is items and model.steps is steps
    assert (model.items, model.map, model.names, model.count) == ([1], {"a": 1}, {"x"}, 0)
    assert model.steps == 0 and model.table is None
    assert not hasattr(model, "extra") and not hasattr(model, "late")
    assert torch.equal(norm.running_mean, torch.zeros(4))


def test_containers_in_containers_are_as_before() -> None:
    model: Any = Stateful()
    model.map = {"cache": {"k": []}, "list": [[1]]}
    model.state = SimpleNamespace(calls=0, kept=defaultdict(list), order=OrderedDict(a=1, b=2))
    model.plain, model.recent = torch.zeros(2), deque([1, 2], maxlen=2)
    with answering(model):
        model.map["cache"]["k"].append(torch.ones(1))
        model.map["cache"]["new"] = 1
        model.map["list"][0].append(2)
        model.state.calls += 1
        model.state.kept["x"].append(1)
        model.state.order.move_to_end("a")
        model.state.late = 1
        model.plain += 1
        model.recent.append(3)
    assert vars(model.state) == {"calls": 0, "kept": {}, "order": OrderedDict(a=1, b=2)}
    assert torch.equal(model.plain, torch.zeros(2)) and list(model.recent) == [1, 2]
    assert model.map == {"cache": {"k": []}, "list": [[1]]}


def test_what_a_forward_keeps_is_no_inference_tensor() -> None:
    class Keeping(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.kept.append(x * 2)
            return x

    model = Keeping()
    kept: list[Tensor] = []
    model.kept = kept
    with answering(model):
        model(torch.ones(2))
        inside = kept[0]
    assert kept == []
    assert not inside.is_inference()


def test_what_a_hook_collects_is_the_users_and_stays() -> None:
    class Collector:
        def __init__(self) -> None:
            self.seen: list[Tensor] = []

        def __call__(self, module: nn.Module, args: Any, output: Tensor) -> None:
            self.seen.append(output)

        def collect(self, module: nn.Module, args: Any, output: Tensor) -> None:
            self.seen.append(output)

    model, collector = nn.Linear(2, 2), Collector()
    model.register_forward_hook(collector)
    model.register_forward_hook(collector.collect)
    with answering(model):
        model(torch.ones(1, 2))
    assert len(collector.seen) == 2
