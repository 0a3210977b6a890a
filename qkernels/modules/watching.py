"""Functions that see modules being called, while a block lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from qkernels.modules.calling import Call

Before = Callable[[str, Call], Call | None]
After = Callable[[str, Call, Any], object]


@contextmanager
def watching(
    modules: Mapping[str, nn.Module],
    before: Before | None = None,
    after: After | None = None,
    *,
    first: bool = False,
    always: bool = False,
) -> Iterator[None]:
    """Show every call of modules to functions, until the block ends or fails.

    Args:
        modules: name -> module.
        before: is handed the name and the call; another call that it returns is made instead.
        after: is handed the name, the call and the output.
        first: ``before`` comes ahead of the module's other hooks.
        always: ``after`` is also told of a call that failed, with an output of None.
    """
    with ExitStack() as stack:
        for name, module in modules.items():
            if before is not None:
                enter = module.register_forward_pre_hook(
                    _entering(before, name), with_kwargs=True, prepend=first
                )
                stack.callback(enter.remove)
            if after is not None:
                leave = module.register_forward_hook(
                    _leaving(after, name), with_kwargs=True, always_call=always
                )
                stack.callback(leave.remove)
        yield


def _entering(before: Before, name: str) -> Callable[..., Any]:
    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        other = before(name, Call(args, kwargs))
        return None if other is None else (other.args, other.kwargs)

    return enter


def _leaving(after: After, name: str) -> Callable[..., None]:
    def leave(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        after(name, Call(args, kwargs), output)

    return leave
