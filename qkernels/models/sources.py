"""Models named by where they come from: `package.module:Name`, `torchvision:resnet50`, `timm:mobilenetv3_small_100`.

The word before the colon is a library that builds models by name, or a module to import. What is imported is code that
runs: a name that a person gives is trusted, one out of a file only if it is an `nn.Module` of an installed package.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import site
import sys
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from qkernels.utils.extras import require

LIBRARIES = ("torchvision", "timm")
_TIMM_NAMES = {"in_channels": "in_chans", "image_size": "img_size"}


def is_named_by_source(name: str) -> bool:
    """Whether a name is that of a library or an import path, and none of the registry."""
    return ":" in name


def build(name: str, **arguments: Any) -> nn.Module:
    """Call what `name` means with these arguments.

    Raises ImportError for what cannot be imported, ValueError for a name or arguments that do not fit, or if no
    nn.Module comes of them.
    """
    builder = _builder(name)
    try:
        model = builder(**arguments)
    except TypeError as error:
        raise ValueError(
            f"{name} cannot be called with {', '.join(arguments) or 'nothing'}: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name} returned a {type(model).__name__}, no nn.Module")
    return model


def accepted(name: str, offered: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the `offered` arguments that the builder has a parameter for, under its own names for them."""
    source = name.partition(":")[0]
    if source == "torchvision":
        return {key: value for key, value in offered.items() if key == "num_classes"}
    if source == "timm":
        kept = {_TIMM_NAMES.get(key, key): value for key, value in offered.items()}
        return {
            key: value for key, value in kept.items() if key != "img_size"
        }  # a transformer's --model-args
    known = inspect.signature(imported(name)).parameters
    return {key: value for key, value in offered.items() if key in known}


def imported(name: str) -> Any:
    """What an import path `package.module:Name` means; the working directory is looked in last.

    Raises ImportError naming what is missing, ValueError for a name of another form.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ValueError(f"{name!r} is no import path: write package.module:Name")
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ImportError(f"{name}: there is no module {error.name}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ImportError(f"{name}: {found.__name__} has no {part!r}")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"{name} is a {type(found).__name__}, no class and no function")
    return found


def check_trusted(name: str) -> None:
    """Raise ValueError for a name out of a file that could run code of any kind.

    That is an import path outside of the installed packages, and one that is no class of an nn.Module: a file could
    name any function and its arguments.
    """
    module_name, _, _ = name.partition(":")
    if module_name in LIBRARIES:
        return
    if not _is_installed(module_name):
        raise ValueError(
            f"{name} lies outside the installed packages, and building it runs its code"
        )
    found = imported(name)
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        raise ValueError(f"{name} is no class of an nn.Module, and building it could run anything")


def _is_installed(module_name: str) -> bool:
    """Whether a module's top package lies where packages are installed. Nothing of it is imported."""
    try:
        spec = importlib.util.find_spec(module_name.partition(".")[0])
    except (ImportError, ValueError):
        return False
    if spec is None or spec.origin is None:
        return False
    paths = sysconfig.get_paths()
    homes = {
        paths["purelib"],
        paths["platlib"],
        *site.getsitepackages(),
        site.getusersitepackages(),
    }
    own = Path(__file__).parents[1]
    where = Path(spec.origin).resolve()
    return any(Path(home).resolve() in where.parents for home in homes) or own in where.parents


def _builder(name: str) -> Callable[..., Any]:
    source, _, rest = name.partition(":")
    if source == "torchvision":
        models = require("torchvision.models", "torchvision")
        if rest not in models.list_models():
            raise ValueError(f"torchvision has no model {rest!r}")
        return lambda **arguments: models.get_model(rest, weights=None, **arguments)
    if source == "timm":
        timm = require("timm", "timm")
        if not timm.is_model(rest):
            raise ValueError(f"timm has no model {rest!r}")
        return lambda **arguments: timm.create_model(rest, pretrained=False, **arguments)
    found: Callable[..., Any] = imported(name)
    return found
