"""Five common jobs as each library's documentation has them, so that the lines a person writes can be counted.

A job is a function of a `Case`, which returns the answer to `case.x` and whose body is what is counted; a library
without the job has no such function.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

LIBRARIES = {
    "qkernels": "with_qkernels",
    "torchao": "with_torchao",
    "quanto": "with_quanto",
    "NNCF + OpenVINO": "with_openvino",
    "ONNX Runtime": "with_onnxruntime",
}
JOBS = {
    "dynamic": "dynamic int8",
    "static": "static int8, calibrated",
    "exclude": "int8, one layer left float",
    "save_and_load": "save, and load into a fresh process",
    "without_torch": "run without torch",
}


@dataclass
class Case:
    """A trained model, an input, data to calibrate on, and a folder for files; `model` is built anew by `make`."""

    make: Callable[[], nn.Module]
    model: nn.Module
    x: Tensor
    batches: list[Tensor]
    folder: Path


def case(folder: Path) -> Case:
    """A perceptron of three layers, "0", "2" and "4"."""

    def make() -> nn.Module:
        layers = (nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
        return nn.Sequential(*layers).eval()

    torch.manual_seed(0)
    return Case(make, make(), torch.randn(8, 64), [torch.randn(8, 64) for _ in range(4)], folder)


def job(library: str, name: str) -> Callable[[Case], Any] | None:
    """The function of a job, or None where the library has no such thing; ImportError if it is not installed."""
    return getattr(importlib.import_module(f"jobs.{LIBRARIES[library]}"), name, None)


def lines_of(function: Callable[[Case], Any]) -> int:
    """Lines of the body as the formatter leaves it, without comments and blank lines."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(definition, ast.FunctionDef)
    return sum(len(ast.unparse(statement).splitlines()) for statement in definition.body)


def table() -> str:
    """Lines by job and library; a dash where there is no such thing."""
    rows = ["| lines for | " + " | ".join(LIBRARIES) + " |", "| --- |" + " ---: |" * len(LIBRARIES)]
    for name, what in JOBS.items():
        found = [job(library, name) for library in LIBRARIES]
        cells = ["-" if function is None else str(lines_of(function)) for function in found]
        rows.append(f"| {what} | {' | '.join(cells)} |")
    return "\n".join(rows)
