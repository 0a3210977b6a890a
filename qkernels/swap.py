"""Put modules in the place of others, wherever a model holds them.

A layer object carries more than its weights: attributes that a model's parser put on it, hooks, places in lists that
a forward walks, several names. All of these stay with the one that takes its place.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Collection, Iterator, Mapping, MutableMapping
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

_FORWARD_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)  # fmt: skip
_REGISTERED = ("_parameters", "_buffers", "_modules")
_TORCHS_OWN = frozenset(nn.Module().__dict__)

Slot = tuple[MutableMapping[str, Any], str]


class ModuleSwap:
    """Swaps modules of ``model``, in place.

    `put` changes every name of a module at once, so that nothing holds the old one any more and its tensors are freed;
    `finish` finds the other references that the model's modules hold to it: in attributes, lists, tuples, sets, dicts,
    partial functions and bound methods.

    Attributes:
        model: the model, which is another object once the root itself was swapped.
        notes: sentences about what could not be carried over.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.notes: list[str] = []
        self._new: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()
        self._slots: WeakKeyDictionary[nn.Module, list[Slot]] = WeakKeyDictionary()
        self._names: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
        self._index(model, "")

    def _index(self, root: nn.Module, prefix: str) -> None:
        for name, module in root.named_modules(prefix=prefix):
            self._names.setdefault(module, name)
            for key, child in module._modules.items():
                if child is not None:
                    self._slots.setdefault(child, []).append((module._modules, key))

    def name_of(self, module: nn.Module) -> str:
        """The first name of a module of the model, also of one that was swapped out."""
        return self._names[module]

    def put(self, old: nn.Module, new: nn.Module, own: Collection[str] | None = None) -> None:
        """Put ``new`` wherever ``old`` is registered; it takes over what `inherit_from` says."""
        name = self._names[old]
        self.notes += [f"{name or 'the model'}: {lost}" for lost in inherit_from(new, old, own)]
        slots = self._slots.get(old, [])
        for registry, key in slots:
            registry[key] = new
        self._index(new, name)
        self._names[new] = name
        self._slots.setdefault(new, []).extend(slots)
        self._new[old] = new
        if old is self.model:
            self.model = new

    def finish(self) -> nn.Module:
        """The model, in which no reference to a swapped module is left but those that `notes` names."""
        if self._new:
            for name, module in self.model.named_modules():
                for key, value in list(module.__dict__.items()):
                    if key in _TORCHS_OWN:
                        continue
                    module.__dict__[key] = _swapped(value, self._new, set())
                    self.notes += [
                        f"{name or 'the model'}.{key} is a function that holds a {held} itself: that one stays float"
                        for held in closed_over(value, self._new)
                    ]
        return self.model


def swap_modules(
    model: nn.Module, new: Mapping[nn.Module, nn.Module]
) -> tuple[nn.Module, list[str]]:
    """Put ``new[m]`` wherever ``m`` was in the model, in place; returns the model and notes (see `ModuleSwap`)."""
    swap = ModuleSwap(model)
    for old, module in new.items():
        swap.put(old, module)
    return swap.finish(), swap.notes


def inherit_from(new: nn.Module, old: nn.Module, own: Collection[str] | None = None) -> list[str]:
    """Give ``new`` what ``old`` carried besides its own work, and return sentences about what is lost.

    Forward hooks go on running, on the same handles. Attributes that ``new`` does not have move to it, and parameters,
    buffers and submodules that are not among ``own``, the names that are the old module's work (None: all of them).
    Backward hooks are lost: an int8 layer has no backward.
    """
    for kind in _FORWARD_HOOKS:
        if kind in old.__dict__:
            new.__dict__[kind] = old.__dict__[kind]
    for key, value in old.__dict__.items():
        if key not in _TORCHS_OWN and not hasattr(new, key):
            new.__dict__[key] = value
    if own is not None:
        for kind in _REGISTERED:
            extra = {
                k: v for k, v in old.__dict__[kind].items() if k not in own and not hasattr(new, k)
            }
            new.__dict__[kind].update(extra)
    lost = old._backward_hooks or old._backward_pre_hooks
    return (
        ["its backward hooks are gone, since what stands there now has no backward"] if lost else []
    )


def replace_module(model: nn.Module, name: str, new: nn.Module) -> nn.Module:
    """Put ``new`` under one name, and there alone; returns the model (``new`` itself for the root, "")."""
    if name == "":
        return new
    parent, _, key = name.rpartition(".")
    model.get_submodule(parent)._modules[key] = new
    return model


def has_hooks(module: nn.Module) -> bool:
    """Whether anything of the user's runs before or after the module's forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def has_own_forward(module: nn.Module) -> bool:
    """Whether the object, and not its class, says what its forward is, as accelerate's hooks do."""
    return "forward" in module.__dict__


def _swapped(value: Any, new: Mapping[nn.Module, nn.Module], seen: set[int]) -> Any:
    """The value with every module in it swapped; containers that can change do, others are made anew."""
    if isinstance(value, nn.Module):
        return new.get(value, value)
    if id(value) in seen:
        return value
    seen.add(id(value))

    def walk(item: Any) -> Any:
        return _swapped(item, new, seen)

    if isinstance(value, list):
        value[:] = map(walk, value)
    elif isinstance(value, dict):
        for key in list(value):
            value[key] = walk(value[key])
        for key in [k for k in value if isinstance(k, nn.Module) and k in new]:
            value[new[key]] = value.pop(key)
    elif isinstance(value, tuple):
        items = [walk(item) for item in value]
        if any(a is not b for a, b in zip(items, value, strict=True)):
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    elif isinstance(value, set):
        for item in [m for m in value if isinstance(m, nn.Module) and m in new]:
            value.remove(item)
            value.add(new[item])
    elif isinstance(value, functools.partial):
        func, args, kwargs = walk(value.func), walk(value.args), walk(dict(value.keywords))
        return functools.partial(func, *args, **kwargs)
    elif isinstance(value, types.MethodType) and isinstance(value.__self__, nn.Module):
        owner = new.get(value.__self__)
        return value if owner is None else getattr(owner, value.__name__, value)
    return value


def closed_over(value: Any, new: Mapping[nn.Module, nn.Module]) -> Iterator[str]:
    """Descriptions of the swapped modules that a function keeps in its closure or defaults."""
    if not isinstance(value, types.FunctionType):
        return
    cells = [_content(cell) for cell in value.__closure__ or ()]
    for held in (*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()):
        if isinstance(held, nn.Module) and held in new:
            yield f"a {type(held).__name__}"


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None
