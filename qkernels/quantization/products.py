"""What layers multiply: what they are called with, and what a forward multiplies by a weight that it reads itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from qkernels.modules.calling import Call
from qkernels.modules.watching import watching

See = Callable[[Tensor], object]


class Products(TorchFunctionMode):
    """Shows every input of layers to a function each, while it is entered.

    ``F.linear(x, self.fc.weight)`` in a forward counts as a call of ``fc`` does: its int8 layer computes both alike.

    Args:
        watch: full name of a layer -> what is shown its inputs.
    """

    def __init__(self, model: nn.Module, watch: Mapping[str, See]) -> None:
        super().__init__()
        self._watch = watch
        self._layers = {name: model.get_submodule(name) for name in watch}
        self._owners: dict[int, list[str]] = defaultdict(list)
        for name, layer in self._layers.items():
            if (weight := layer._parameters.get("weight")) is not None:
                self._owners[id(weight)].append(name)
        self._running: list[str] = []
        self._called: set[str] = set()
        self._read: dict[str, None] = {}

    def uncalled(self) -> list[str]:
        """The layers whose weight was multiplied by though they did not run."""
        return [name for name in self._read if name not in self._called]

    def __enter__(self) -> Products:
        self._watching = watching(self._layers, self._enter, self._leave, always=True)
        self._watching.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._watching.__exit__(*error)

    def _enter(self, name: str, call: Call) -> None:
        self._running.append(name)
        self._called.add(name)
        self._watch[name](call.first)

    def _leave(self, *_: Any) -> None:
        self._running.pop()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            given = {**dict(zip(("input", "weight", "bias"), args, strict=False)), **kwargs}
            owners = self._owners.get(id(given["weight"]), [])
            if not any(name in self._running for name in owners):  # else it is the layer's own
                for name in owners:
                    self._read[name] = None
                    self._watch[name](given["input"])
        return func(*args, **kwargs)
