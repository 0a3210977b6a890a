"""A model that only answers for a while."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from qkernels.modules.references import ATOMS, LEAVES


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, gradients as they are outside; every module's training flag restored after."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


@contextmanager
def answering(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients inside; after it the model's flags, attributes and buffers are as they were.

    Not ``inference_mode``, whose tensors, once a forward has stored one in the model, no training can use again.
    """
    kept = [_kept(value) for value in _state(model)]
    with eval_mode(model), torch.no_grad():
        try:
            yield
        finally:
            for restore in kept:
                restore()


_REGISTERED = ("_parameters", "_buffers", "_modules")
_ATTRIBUTES = frozenset(nn.Module().__dict__) - {"training"}


def _state(model: nn.Module) -> Iterator[Any]:
    """All that a forward may write to: modules, their containers and objects at any depth, and tensors in them."""
    open_: list[Any] = [model]
    seen: dict[int, Any] = {}  # which keeps what is seen alive, so that no id is used again
    while open_:
        value = open_.pop()
        if id(value) in seen or isinstance(value, (nn.Parameter, *LEAVES)):
            continue
        seen[id(value)] = value
        yield value
        if isinstance(value, dict | list | tuple | set | frozenset | deque):
            items = value.values() if isinstance(value, dict) else value
            open_ += (item for item in items if type(item) not in ATOMS)
        elif isinstance(value, nn.Module):  # but for its hooks, whose state is not the model's
            own = value.__dict__
            open_ += (own[k] for k in own if k in _REGISTERED or k not in _ATTRIBUTES)
            continue
        open_ += getattr(value, "__dict__", {}).values()


def _kept(value: Any) -> Callable[[], None]:
    """What puts the value back as it is now."""
    steps = []
    if isinstance(value, Tensor):
        if (
            value.dtype == torch.int8 or value.is_inference()
        ):  # packed weights, which no forward writes
            return lambda: None
        version, clone = value._version, value.detach().clone()
        return lambda: None if value._version == version else _copy_back(value, clone)
    if isinstance(value, list | dict | set | deque):
        steps.append(_kept_items(value))
    attributes = getattr(value, "__dict__", None)
    if isinstance(attributes, dict):
        steps.append(_kept_items(attributes))

    def restore() -> None:
        for step in steps:
            step()

    return restore


def _copy_back(tensor: Tensor, value: Tensor) -> None:
    tensor.detach().copy_(value)


def _kept_items(container: Any) -> Callable[[], None]:
    items = dict(container) if isinstance(container, dict) else list(container)

    def restore() -> None:
        pairs = zip(container, items, strict=False)
        same = len(container) == len(items) and all(a is b for a, b in pairs)
        if same and isinstance(items, dict):
            same = all(container[key] is items[key] for key in items)
        if not same:
            container.clear()
            container.update(items) if isinstance(container, dict | set) else container.extend(
                items
            )

    return restore
