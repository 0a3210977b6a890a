"""Modules in the place of others, and all that held them."""

import functools
import weakref
from collections import OrderedDict, defaultdict, deque
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qkernels.modules.swap import (
    ModuleSwap,
    has_hooks,
    has_own_forward,
    inherit_from,
    swap_modules,
)


class Other(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def net() -> Any:
    return nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Sequential(nn.Linear(2, 2)))


def test_every_name_of_a_module_gets_the_new_one_and_the_old_one_is_freed() -> None:
    model = net()
    model.append(model[0])
    model[2].extra = model[0]
    old, new = weakref.ref(model[0]), Other()
    swap = ModuleSwap(model)
    swap.put(model[0], new)
    assert swap.finish() is model
    assert model[0] is model[3] is model[2].extra is new
    assert old() is None


def test_the_root_itself_is_swapped() -> None:
    model, new = nn.Linear(2, 2), Other()
    swap = ModuleSwap(model)
    swap.put(model, new)
    assert swap.finish() is new
    assert swap_modules(model, {model: new})[0] is new


def test_names_stay_known_after_a_swap() -> None:
    model, new = net(), Other()
    swap = ModuleSwap(model)
    old = model[2][0]
    swap.put(old, new)
    assert swap.name_of(old) == swap.name_of(new) == "2.0"


def test_a_module_put_back_is_found_everywhere() -> None:
    model, between = net(), Other()
    first = model[0]
    model.walk = [first, (first,)]
    swap = ModuleSwap(model)
    swap.put(first, between)
    swap.finish()
    assert model.walk == [between, (between,)]
    swap.put(between, first)
    swap.finish()
    assert model.walk == [first, (first,)]
    assert model[0] is first


def test_a_module_put_back_before_anything_was_finished_leaves_no_trace() -> None:
    model, between = net(), Other()
    first = model[0]
    model.walk = [first]
    swap = ModuleSwap(model)
    swap.put(first, between)
    swap.put(between, first)
    swap.finish()
    assert model.walk == [first]


def test_a_module_swapped_twice_is_the_last_one_everywhere() -> None:
    model, middle, last = net(), Other(), Other()
    model.walk = {"a": model[0]}
    swap = ModuleSwap(model)
    swap.put(model[0], middle)
    swap.put(middle, last)
    swap.finish()
    assert model.walk == {"a": last}


def test_children_of_a_new_module_can_be_swapped_in_turn() -> None:
    model, outer, inner = net(), nn.Sequential(nn.Linear(2, 2)), Other()
    swap = ModuleSwap(model)
    swap.put(model[0], outer)
    assert swap.name_of(outer[0]) == "0.0"
    swap.put(outer[0], inner)
    assert swap.finish()[0][0] is inner


def test_a_new_module_may_hold_the_old_one() -> None:
    model = net()
    old, new = model[0], nn.Sequential(model[0])
    swap_modules(model, {old: new})
    assert model[0] is new
    assert new[0] is old
    model(torch.ones(1, 2))


class Slots:
    __slots__ = ("__dict__", "a", "empty")


def containers(m: nn.Module) -> dict[str, Any]:
    slots = Slots()
    slots.a, slots.b = m, m
    default = defaultdict(list)
    default["a"].append(m)
    cycle: list[Any] = [m]
    cycle.append(cycle)
    return {
        "ordered": OrderedDict(first=1, a=m),
        "keys in order": {"first": 1, m: 2, "last": 3},
        "default": default,
        "deque": deque([1, m], maxlen=4),
        "slots": slots,
        "cycle": cycle,
        "partial": functools.partial(print, m, sep=m),
        "tuples": ((m, (m,)), frozenset([m])),
        "set": {m, 1},
        "list of sets": [{m}],
        "a partial with attributes": functools.update_wrapper(functools.partial(net, m), net),
    }


def held(value: Any, found: list[Any], seen: set[int]) -> list[Any]:
    """Every module in a value."""
    if isinstance(value, nn.Module):
        return [*found, value]
    if id(value) in seen or isinstance(value, str):
        return found
    seen.add(id(value))
    if isinstance(value, functools.partial):
        items = [value.args, value.keywords]
    elif isinstance(value, dict):
        items = [*value.keys(), *value.values()]
    elif isinstance(value, Slots):
        items = [value.a, value.b]
    elif isinstance(value, list | tuple | set | frozenset | deque):
        items = list(value)
    else:
        return found
    for item in items:
        found = held(item, found, seen)
    return found


@pytest.mark.parametrize("name", containers(nn.Identity()))
def test_a_reference_in_a_container_is_the_new_module_and_the_rest_stays(name: str) -> None:
    model, new = net(), Other()
    model.box = containers(model[0])[name]
    kind, count = type(model.box), len(held(model.box, [], set()))
    swap_modules(model, {model[0]: new})
    assert type(model.box) is kind
    modules = held(model.box, [], set())
    assert modules == [new] * count and count
    if name == "keys in order":
        assert list(model.box.items()) == [("first", 1), (new, 2), ("last", 3)]
    if name == "deque":
        assert model.box.maxlen == 4
    if name == "a partial with attributes":
        assert model.box.__name__ == "net"


def test_what_no_swap_concerns_is_left_the_same_object() -> None:
    model = net()
    boxes = containers(model[1])
    model.box, model.logger = boxes, __import__("logging").getLogger("x")
    kept = dict(boxes)
    model.back = [weakref.proxy(model)]
    swap_modules(model, {model[0]: Other()})
    assert all(model.box[k] is v for k, v in kept.items())


def test_hooks_keep_their_handles_and_order() -> None:
    old, new, calls = nn.Linear(2, 2), Other(), []
    first = old.register_forward_hook(lambda *_: calls.append(1))
    old.register_forward_pre_hook(lambda *_: calls.append(0))
    old.register_forward_hook(lambda *_: calls.append(2), always_call=True)
    inherit_from(new, old)
    new(torch.ones(1, 2))
    first.remove()
    new(torch.ones(1, 2))
    assert calls == [0, 1, 2, 0, 2]
    assert has_hooks(new) and not has_hooks(nn.Linear(2, 2))


def test_attributes_move_unless_the_new_module_means_something_by_them() -> None:
    old, new = nn.Linear(2, 2), Other()
    old.i, old.type, old.in_features, new.in_features = 3, "Linear", 2, "mine"
    inherit_from(new, old)
    assert (new.i, new.type, new.in_features) == (3, "Linear", "mine")


def test_parameters_that_are_not_the_old_modules_work_move() -> None:
    old, new = nn.Linear(2, 2), Other()
    old.scale = nn.Parameter(torch.ones(2))
    old.register_buffer("shift", torch.ones(2))
    old.act = nn.ReLU()
    inherit_from(new, old, own=("weight", "bias"))
    assert sorted(new.state_dict()) == ["scale", "shift"]
    assert new.act is old.act
    untouched = Other()
    inherit_from(untouched, old)
    assert not untouched.state_dict()


def test_a_patched_forward_is_told_from_a_class_of_its_own() -> None:
    layer = nn.Linear(2, 2)
    assert not has_own_forward(layer)
    layer.forward = lambda x: x
    assert has_own_forward(layer)


def test_a_function_that_closed_over_a_swapped_module_is_noted_once() -> None:
    model = net()
    layer = model[0]
    model.run = [lambda x: layer(x)]
    _, notes = swap_modules(model, {layer: Other()})
    assert len(notes) == 1 and "the model.run" in notes[0] and "Linear" in notes[0]


def test_modules_exchanged_to_and_fro_are_where_the_last_exchange_put_them() -> None:
    model = net()
    first, other, last = model[0], Other(), nn.Sequential(nn.Linear(2, 2))
    model.append(first)
    model.walk = [first]
    swap = ModuleSwap(model)
    for old, new in ((first, other), (other, first), (first, last), (last, first), (first, other)):
        swap.exchange(old, new)
        assert swap.finish()[0] is model[3] is model.walk[0] is new
    assert vars(first).keys() == vars(nn.Linear(2, 2)).keys()
