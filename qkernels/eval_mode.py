"""A model that only answers for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


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
    kept = [_Kept(module) for module in model.modules()]
    with eval_mode(model), torch.no_grad():
        try:
            yield
        finally:
            for state in kept:
                state.restore()


class _Kept:
    """The state of one module that a forward may change: its buffers, its attributes, the items of its containers."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.attributes = dict(module.__dict__)
        self.items: dict[str, Any] = {
            key: value.copy()
            for key, value in self.attributes.items()
            if type(value) in (dict, list, set)
        }
        self.buffers = [
            (buffer, buffer._version, buffer.clone())
            for buffer in module._buffers.values()
            if isinstance(buffer, Tensor)
            and buffer.dtype != torch.int8  # packed weights, which no forward writes
        ]

    def restore(self) -> None:
        now = self.module.__dict__
        for key in [key for key in now if key not in self.attributes]:
            del now[key]
        for key, value in self.attributes.items():
            if now.get(key) is not value:
                now[key] = value
        for key, items in self.items.items():
            container = self.attributes[key]
            container.clear()
            container.extend(items) if isinstance(container, list) else container.update(items)
        for buffer, version, value in self.buffers:
            if buffer._version != version:
                buffer.copy_(value)
