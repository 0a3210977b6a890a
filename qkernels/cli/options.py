"""Options that several commands take, each written down once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel, ConfigDict, Field

from qkernels.cli.flags import flags_of, given
from qkernels.cli.printing import say
from qkernels.data import ImageData
from qkernels.data.choice import DataChoice
from qkernels.pipeline import ModelChoice

Command = TypeVar("Command", bound=Callable[..., Any])

Size = Annotated[
    str, typer.Option(help="Size of one input, such as 1,3,224,224; its batch is only an example.")
]
Trust = Annotated[
    bool, typer.Option("--trust", help="Run the code that a checkpoint names for its model.")
]
MODEL = "a name of `qkernels info`, package.module:Net, torchvision:NAME or timm:NAME"


class ModelFlags(BaseModel):
    """Which model the weights of a file are of."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    model: str | None = Field(None, description=f"Model that float weights are of: {MODEL}.")
    model_args: str | None = Field(
        None, description="Its arguments as JSON, such as '{\"width\": 64}'."
    )
    width: int | None = Field(None, ge=1, description="Its width, else as published.")
    trust: bool | None = Field(
        None, description="Run the code that a checkpoint names for its model."
    )


def takes_data(command: Command) -> Command:
    """Give a command the options of `DataChoice`, among its `**flags`."""
    return flags_of(DataChoice, help_of={}, shown=_shown)(command)


def takes_model(command: Command) -> Command:
    """Give a command the options of `ModelFlags`, among its `**flags`."""
    return flags_of(ModelFlags, help_of={}, shown=lambda name: "")(command)


def chosen_data(flags: Mapping[str, Any]) -> ImageData:
    """The data that the flags mean; what was left out of its files is said."""
    data = DataChoice(**given(_only(DataChoice, flags))).load_data()
    for note in data.notes:
        say(note)
    return data


def chosen_model(flags: Mapping[str, Any]) -> ModelChoice:
    """The model that the flags mean."""
    return ModelChoice(
        flags["model"], flags["model_args"] or "", flags["width"], bool(flags["trust"])
    )


def rest(flags: Mapping[str, Any], *taken: type[BaseModel]) -> dict[str, Any]:
    """The flags that are given and no part of the configs `taken`."""
    names = {name for config in taken for name in config.model_fields}
    return given({name: value for name, value in flags.items() if name not in names})


def _only(config: type[BaseModel], flags: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if name in config.model_fields}


def _shown(field: str) -> str:
    default = DataChoice.model_fields[field].default
    return str(default) if default else ""
