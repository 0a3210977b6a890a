"""Command-line options out of a pydantic config: its fields are written down once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel

Command = TypeVar("Command", bound=Callable[..., Any])


def flags_of(
    config: type[BaseModel], *, help_of: Mapping[str, str], shown: Callable[[str], str]
) -> Callable[[Command], Command]:
    """Decorate a command `f(..., **flags)`: one option a field of `config`.

    What the user leaves out is None, so that the config's own default counts; `shown(field)` is the
    default to print. `help_of` has the text of fields without a description.
    """
    flags = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                field.annotation | None,  # type: ignore[operator]
                typer.Option(
                    help=field.description or help_of[name], show_default=shown(name) or False
                ),
            ],
        )
        for name, field in config.model_fields.items()
    ]

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        command.__signature__ = signature.replace(parameters=[*own, *flags])  # type: ignore[attr-defined]
        return command

    return decorate


def given(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that the user has set."""
    return {name: value for name, value in flags.items() if value is not None}
