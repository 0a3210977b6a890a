"""Layers that a model never calls: it reads their weights and multiplies by them itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class Products(TorchFunctionMode):
    """Sees which layers run and whose weight `F.linear` multiplies by, while it is entered.

    Args:
        names: of the layers to watch.
    """

    def __init__(self, model: nn.Module, names: Collection[str]) -> None:
        super().__init__()
        layers = {name: model.get_submodule(name) for name in names}
        self._layers = layers
        self._owners = {id(layer._parameters.get("weight")): name for name, layer in layers.items()}
        self._read: dict[str, None] = {}
        self._called: set[str] = set()

    def uncalled(self) -> list[str]:
        """The layers whose weight was multiplied by though they did not run."""
        return [name for name in self._read if name not in self._called]

    @contextmanager
    def watching(self) -> Iterator[Products]:
        """Inside, every product and every call of the layers counts."""
        handles = [
            layer.register_forward_pre_hook(lambda *_, name=name: self._called.add(name))
            for name, layer in self._layers.items()
        ]
        try:
            with self:
                yield self
        finally:
            for handle in handles:
                handle.remove()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is F.linear:
            weight = args[1] if len(args) > 1 else (kwargs or {}).get("weight")
            if (name := self._owners.get(id(weight))) is not None:
                self._read[name] = None
        return func(*args, **(kwargs or {}))
