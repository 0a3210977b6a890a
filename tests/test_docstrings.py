"""What the documents say of the code: every public name, in sentences that say what they speak of."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
TORCHS = {"forward", "extra_repr"}  # methods whose meaning torch gives
# What a docstring begins with that has left out its noun.
PREPOSITIONS = {
    *(
        "After",
        "As",
        "At",
        "Before",
        "Behind",
        "Beside",
        "Between",
        "By",
        "For",
        "From",
        "In",
        "Into",
    ),
    *("Of", "On", "Through", "To", "Where", "With", "Without"),
}


def public_names() -> Iterator[tuple[str, Any]]:
    """What the reference of the site has, and the methods and properties of its classes."""
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / "docs/site.py")
    assert spec is not None and spec.loader is not None
    site = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(site)
    for _, modules in site.REFERENCE.values():
        for module in modules:
            for name, value in site.public(importlib.import_module(module)):
                yield f"{module}.{name}", value
                for attribute, _ in (
                    inspect.getmembers(value, _is_told) if inspect.isclass(value) else ()
                ):
                    if attribute in vars(value) and attribute not in TORCHS and attribute[0] != "_":
                        yield f"{module}.{name}.{attribute}", getattr(value, attribute)


def _is_told(member: object) -> bool:
    return inspect.isroutine(member) or isinstance(member, property)


def test_every_public_name_has_a_docstring() -> None:
    """A method's may be that of the class which it inherits from."""
    for package in ("torch_pruning", "accelerate", "onnx"):
        pytest.importorskip(package)
    found = dict(public_names())
    assert len(found) > 300
    assert not [name for name, value in found.items() if not inspect.getdoc(value)]


def test_docstrings_say_what_they_speak_of() -> None:
    """`Of "1,3,224,224".` does not say what is made of it."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    wrong = []
    for path in sorted((ROOT / "qkernels").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            text = ast.get_docstring(node) if isinstance(node, kinds) else None
            if text and text.split()[0].strip(",.") in PREPOSITIONS:
                wrong.append(f"{path.relative_to(ROOT)}: {text.splitlines()[0]}")
    assert not wrong
