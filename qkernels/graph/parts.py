"""A model that torch.export cannot follow: its largest parts that it can follow are compiled, Python calls them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from qkernels.graph.compiled import CompiledModel
from qkernels.graph.report import ChainReport, LayerChain
from qkernels.modules.calling import Call
from qkernels.modules.capture import CaptureError, Watched
from qkernels.modules.copying import copied
from qkernels.modules.eval_mode import answering
from qkernels.modules.swap import ModuleSwap
from qkernels.nn.module import QuantModule
from qkernels.program import Profile

Compile = Callable[[nn.Module, Call], CompiledModel]


class CompiledParts(CompiledModel):
    """A copy of a model in which parts are compiled; its own forward calls them, and the rest as it was.

    ``report.uncaptured`` says why it is not whole, and ``report.layers`` has the layers of all parts, then the others.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.steps(*args, **kwargs)

    def profile(self, *args: Any, runs: int = 20, **kwargs: Any) -> Profile:
        raise ValueError(f"{self.report.uncaptured}; compile and profile one of them")


def compile_parts(
    model: nn.Module, call: Call, why: CaptureError, compile: Compile
) -> CompiledParts:
    """``model``, which cannot be captured, with its largest parts compiled as ``call`` calls them.

    Only what its graph shows may depend on a part. It is left as it is where it ran several times in the call, where it
    was given more than tensors and plain values (a cache, say), and where others read its tensors or its modules.

    Raises:
        ValueError: none of its parts can be compiled; the message has torch's reason for the model.
    """
    name = type(model).__name__
    search = _Search(model, call, compile)
    if not search.parts:
        raise ValueError(f"{name} cannot be captured, so it stays un-chained: {why}") from why
    report = _joined(model, search.parts)
    report.uncaptured = (
        f"{name} cannot be captured ({why}); compiled are its parts {', '.join(search.parts)}, the "
        "rest is as it was"
    )
    return CompiledParts(search.swap.finish(), report)


class _Search:
    """Puts compiled parts into a copy of a model, from the largest down: ``parts`` by name."""

    def __init__(self, model: nn.Module, call: Call, compile: Compile) -> None:
        self.parts: dict[str, CompiledModel] = {}
        self.swap = ModuleSwap(copied(model)[0])
        self._call, self._compile = call, compile
        self._watched = Watched(model, call)
        self._descend(model, "")

    def _descend(self, module: nn.Module, prefix: str) -> None:
        for child_name, child in module.named_children():
            name = f"{prefix}{child_name}"
            if isinstance(child, QuantModule) or not _has_int8(child) or self._take(child, name):
                continue
            self._descend(child, f"{name}.")

    def _take(self, module: nn.Module, name: str) -> bool:
        """Whether the part is compiled now, and the model still answers."""
        if not self._watched.is_closed(name) or not _is_plain(self._watched.calls[name]):
            return False
        try:
            compiled = self._compile(module, self._watched.calls[name])
        except ValueError:  # its own parts may be captured, or nearer
            return False
        before = self.swap.model.get_submodule(name)
        self.swap.put(before, compiled)
        try:
            with answering(self.swap.model):
                self._call.run(self.swap.model)
        except Exception:  # whatever a forward raises that asks for more of a part than its answer
            self.swap.exchange(compiled, before)
            return False
        self.parts[name] = compiled
        return True


def _has_int8(module: nn.Module) -> bool:
    return any(isinstance(m, QuantModule) for m in module.modules())


def _is_plain(call: Call) -> bool:
    """Whether it gives nothing that a part could change or keep, as a cache is."""
    open_: list[Any] = [call.args, call.kwargs]
    while open_:
        value = open_.pop()
        if isinstance(value, Mapping) and type(value).__module__ in {"builtins", "collections"}:
            open_ += value.values()
        elif isinstance(value, list | tuple):
            open_ += value
        elif not (value is None or isinstance(value, Tensor | bool | int | float | str)):
            return False
    return True


def _joined(model: nn.Module, parts: Mapping[str, CompiledModel]) -> ChainReport:
    """One report of all parts, and of the layers outside of them."""
    joined = ChainReport()
    for part, compiled in parts.items():
        report = compiled.report
        joined.layers += [replace(row, name=f"{part}.{row.name}") for row in report.layers]
        joined.unfused += [
            f"{part}.{step}" if " (" in step else f"{part} ({step})" for step in report.unfused
        ]
        joined.sqnr_db |= {f"{part}.{name}": db for name, db in report.sqnr_db.items()}
    joined.layers += [
        LayerChain(name, reads="float32", why="is in no part that is compiled")
        for name, layer in model.named_modules()
        if isinstance(layer, QuantModule) and not name.startswith(tuple(f"{p}." for p in parts))
    ]
    return joined
