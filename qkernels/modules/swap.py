"""Put modules in the place of others, wherever a model holds them.

A layer object carries more than its weights: attributes that a model's parser put on it, hooks, places in lists that
a forward walks, several names. All of these stay with the one that takes its place.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableMapping
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from qkernels.modules.references import TORCHS_OWN, Replacement
from qkernels.modules.standing_in import stand_in_for

_FORWARD_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)  # fmt: skip
_REGISTERED = ("_parameters", "_buffers", "_modules")

Slot = tuple[MutableMapping[str, Any], str]


class ModuleSwap:
    """Swaps modules of ``model``, in place.

    `put` changes every name of a module at once, so that nothing holds the old one any more and its tensors are freed;
    `finish` finds the other references that the model's modules hold to it (`qkernels.modules.references`).

    Attributes:
        model: the model, which is another object once the root itself was swapped.
        notes: sentences about what could not be carried over.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.notes: list[str] = []
        self._new: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()
        self._slots: WeakKeyDictionary[nn.Module, dict[tuple[int, str], Slot]] = WeakKeyDictionary()
        self._names: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
        self._index(model, "")

    def _index(self, root: nn.Module, prefix: str) -> None:
        for name, module in root.named_modules(prefix=prefix):
            self._names.setdefault(module, name)
            for key, child in module._modules.items():
                if child is not None:
                    slots = self._slots.setdefault(child, {})
                    slots[id(module._modules), key] = (module._modules, key)

    def name_of(self, module: nn.Module) -> str:
        """The first name of a module of the model, also of one that was swapped out."""
        return self._names[module]

    def put(self, old: nn.Module, new: nn.Module, own: Collection[str] | None = None) -> None:
        """Put ``new`` wherever ``old`` is registered; it takes over what `inherit_from` says."""
        name = self._names[old] or "the model"
        self.notes += [f"{name}: {lost}" for lost in inherit_from(new, old, own)]
        self.exchange(old, new)

    def exchange(self, old: nn.Module, new: nn.Module) -> None:
        """Put ``new`` wherever ``old`` is registered, as it is."""
        name = self._names[old]
        slots = self._slots.pop(old, {})
        for registry, key in slots.values():
            registry[key] = new
        self._index(new, name)
        self._names[new] = name
        self._slots.setdefault(new, {}).update(slots)
        self._new.pop(new, None)  # it may have been here before
        self._new[old] = new
        if old is self.model:
            self.model = new

    def _latest(self, module: nn.Module) -> nn.Module:
        """What stands for a module now, however often it was swapped."""
        while module in self._new:
            module = self._new[module]
        return module

    def finish(self) -> nn.Module:
        """The model, in which no reference to a swapped module is left but those that `notes` names."""
        if self._new:
            latest = {old: self._latest(old) for old in list(self._new)}
            self.notes += [
                f"a function in {where} holds a {held} itself: that one stays float"
                for where, held in Replacement(self.model, latest).functions
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

    A layer of ours becomes an instance of the old one's class too (`qkernels.modules.standing_in`).
    Forward hooks go on running, on the same handles. Attributes that ``new`` does not have move to it, and parameters,
    buffers and submodules that are not among ``own``, the names that are the old module's work (None: all of them).
    Backward hooks are lost: an int8 layer has no backward.
    """
    stand_in_for(new, old)
    _settle(old)
    for kind in _FORWARD_HOOKS:
        if kind in old.__dict__:
            new.__dict__[kind] = old.__dict__[kind]
    for key, value in old.__dict__.items():
        if key not in TORCHS_OWN and not _has_its_own(new, old, key):
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


def _settle(module: nn.Module) -> None:
    """Take off what a lazy module waits for its first input with."""
    for key in ("_initialize_hook", "_load_hook"):
        if isinstance(module, LazyModuleMixin) and hasattr(module, key):
            getattr(module, key).remove()
            delattr(module, key)


def _has_its_own(new: nn.Module, old: nn.Module, key: str) -> bool:
    """Whether ``new`` means something of its own by an attribute, which is not just what every module has."""
    if key in new.__dict__ or any(key in new.__dict__[kind] for kind in _REGISTERED):
        return True
    meant = getattr(type(new), key, None)
    return meant is not None and meant is not getattr(type(old), key, None)


def has_hooks(module: nn.Module) -> bool:
    """Whether anything of the user's runs before or after the module's forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def has_own_forward(module: nn.Module) -> bool:
    """Whether the object, and not its class, says what its forward is, as accelerate's hooks do."""
    return "forward" in module.__dict__
