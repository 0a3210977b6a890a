"""Functions that see modules being called, while a block lasts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qkernels.modules.calling import Call
from qkernels.modules.watching import watching


class Halves(nn.Module):
    def forward(self, x: Tensor, *, by: float = 2.0) -> Tensor:
        return x / by


def test_every_call_is_seen_with_its_arguments_and_its_output() -> None:
    seen: list[Any] = []
    module, x = Halves(), torch.ones(2)

    def before(name: str, call: Call) -> None:
        seen.append((name, call.first, call.kwargs))

    with watching({"it": module}, before, lambda name, call, y: seen.append((name, y))):
        y = module(x, by=4.0)
    module(x)
    assert seen == [("it", x, {"by": 4.0}), ("it", y)]


def test_another_call_is_made_instead() -> None:
    module = Halves()
    with watching({"": module}, lambda name, call: Call((2 * call.first,), {"by": 1.0})):
        assert module(torch.ones(1)).item() == 2.0


def test_no_hook_is_left_whatever_happens() -> None:
    module = nn.Linear(2, 2)
    with pytest.raises(RuntimeError), watching({"": module}, lambda *_: None, lambda *_: None):
        module(torch.ones(3))
    assert not module._forward_hooks and not module._forward_pre_hooks
    assert not module._forward_hooks_with_kwargs and not module._forward_hooks_always_called


def test_a_failed_call_is_told_only_to_those_who_ask() -> None:
    module, told = nn.Linear(2, 2), []
    for always in (False, True):
        watched = watching({"": module}, after=lambda *seen: told.append(seen), always=always)
        with pytest.raises(RuntimeError), watched:
            module(torch.ones(3))
    ((_, _, output),) = told
    assert output is None


@pytest.mark.parametrize("first", [False, True])
def test_a_user_s_hook_comes_before_or_after(first: bool) -> None:
    module, seen = Halves(), []
    module.register_forward_pre_hook(lambda module, args: (10 * args[0],))
    with watching({"": module}, lambda name, call: seen.append(call.first.item()), first=first):
        module(torch.ones(1))
    assert seen == [1.0 if first else 10.0]
