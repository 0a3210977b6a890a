"""Optional dependencies, imported at the moment they are needed."""

from __future__ import annotations

import importlib
from typing import Any


def require(module: str, extra: str = "train") -> Any:
    """Import `module` by name, or say which extra of this package brings it.

    Raises ImportError with the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f'{package} is needed for this: pip install "qkernels[{extra}]"'
        ) from error
