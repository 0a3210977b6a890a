"""Every reference to a module that the objects around a model hold, outside of the registries of nn.Module.

Forwards reach their layers through lists, dicts, tuples, partial functions, bound methods, dataclasses and objects of
the user's own, also through modules that are not registered.
"""

from __future__ import annotations

import functools
import logging
import types
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

_FORWARD_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
TORCHS_OWN = frozenset(nn.Module().__dict__)  # attributes that every module has
_PASSED_BY = TORCHS_OWN - {*_FORWARD_HOOKS}
_PROXIES = (weakref.ProxyType, weakref.CallableProxyType)
ATOMS: frozenset[type] = frozenset(
    {str, bytes, int, float, bool, complex, type(None)}
)  # of which a list may hold millions
LEAVES: tuple[type, ...] = (  # what holds nothing of a model's
    *ATOMS, bytearray, type, types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType,
    *_PROXIES, logging.Logger,
)  # fmt: skip


class Replacement:
    """Puts ``new[m]`` in the place of ``m`` in everything that the modules of ``model`` hold, at any depth.

    Lists, dicts, sets and objects are changed in place; tuples, frozensets, partial functions and bound methods are
    made anew where something in them changed. Functions keep what they closed over: `functions` names those.

    Attributes:
        functions: (where a function was found, class name of the module that it goes on using).
    """

    def __init__(self, model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
        self.new = new
        self.functions: list[tuple[str, str]] = []
        registered = dict(model.named_modules())
        self._seen: dict[int, Any] = {id(m): m for m in (*registered.values(), new)}
        self._open: list[Any] = []  # what is still to be looked into
        for name, module in registered.items():
            for key in [k for k in module.__dict__ if k not in _PASSED_BY]:
                self._where = f"{name or 'the model'}.{key}"
                module.__dict__[key] = self._replaced(module.__dict__[key])
                while self._open:
                    self._look_into(self._open.pop())

    def _replaced(self, value: Any) -> Any:
        """What takes the value's place; what can be changed in place is put off."""
        if type(value) in ATOMS or type(value) in _PROXIES:  # which say that they are modules
            return value
        if isinstance(value, nn.Module) and value in self.new:
            return self.new[value]
        if isinstance(value, types.FunctionType):
            self.functions += [(self._where, held) for held in closed_over(value, self.new)]
        elif isinstance(value, tuple):
            return self._rebuilt(value, getattr(type(value), "_make", type(value)))
        elif isinstance(value, frozenset):
            return self._rebuilt(value, type(value))
        elif isinstance(value, functools.partial):
            return self._partial(value)
        elif isinstance(value, types.MethodType):
            return self._method(value)
        elif not isinstance(value, (Tensor, *LEAVES)) and id(value) not in self._seen:
            self._seen[id(value)] = value
            self._open.append(value)
        return value

    def _rebuilt(self, value: Iterable[Any], make: Any) -> Any:
        items = [self._replaced(item) for item in value]
        changed = any(a is not b for a, b in zip(items, value, strict=True))
        return make(items) if changed else value

    def _partial(self, value: functools.partial[Any]) -> Any:
        parts = (value.func, value.args, value.keywords)
        func, args, kwargs = (self._replaced(part) for part in (*parts[:2], dict(parts[2])))
        self._look_into(kwargs)
        if func is value.func and args is value.args and _same_items(kwargs, value.keywords):
            return value
        made = type(value)(func, *args, **kwargs)
        made.__dict__.update(value.__dict__)
        return made

    def _method(self, value: types.MethodType) -> Any:
        owner = self._replaced(value.__self__)
        if owner is value.__self__:
            return value
        name = value.__name__
        theirs = getattr(type(value.__self__), name, None) is value.__func__
        return getattr(owner, name) if theirs else types.MethodType(value.__func__, owner)

    def _look_into(self, value: Any) -> None:
        if isinstance(value, list | deque):
            for i, item in enumerate(value):
                if type(item) not in ATOMS and (new := self._replaced(item)) is not item:
                    value[i] = new
        elif isinstance(value, dict):
            items = [(self._replaced(k), self._replaced(v)) for k, v in value.items()]
            if not _same_keys(value, items):  # in the order that it had
                value.clear()
            for key, item in items:
                if key not in value or value[key] is not item:
                    value[key] = item
        elif isinstance(value, set):
            items = [(item, self._replaced(item)) for item in value]
            value.difference_update(old for old, new in items if old is not new)
            value.update(new for old, new in items if old is not new)
        self._look_into_attributes(value)

    def _look_into_attributes(self, value: Any) -> None:
        attributes = getattr(value, "__dict__", None)
        if isinstance(attributes, dict):
            for key in list(attributes):
                attributes[key] = self._replaced(attributes[key])
        for kind in type(value).__mro__:
            for member in vars(kind).values():
                if isinstance(member, types.MemberDescriptorType) and kind.__module__ != "builtins":
                    self._replace_slot(value, member)

    def _replace_slot(self, value: Any, member: types.MemberDescriptorType) -> None:
        try:
            old = member.__get__(value)
        except AttributeError:  # not filled
            return
        new = self._replaced(old)
        if new is not old:
            member.__set__(value, new)


def _same_items(one: Mapping[Any, Any], other: Mapping[Any, Any]) -> bool:
    return all(one[key] is other[key] for key in other)


def _same_keys(value: Mapping[Any, Any], items: list[tuple[Any, Any]]) -> bool:
    return all(a is b for a, (b, _) in zip(value, items, strict=True))


def closed_over(function: Any, modules: Mapping[nn.Module, nn.Module]) -> Iterator[str]:
    """Class names of those of the modules that a function keeps in its closure or defaults."""
    if not isinstance(function, types.FunctionType):
        return
    cells = [_content(cell) for cell in function.__closure__ or ()]
    defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    for held in (*cells, *defaults):
        for item in held if isinstance(held, list | tuple) else [held]:
            if isinstance(item, nn.Module) and item in modules:
                yield type(item).__name__


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None
