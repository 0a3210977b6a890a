"""The graph of the call that is really made, one spelling an operation.

`torch.export` runs a model's own forward on an example's shapes, so that optional arguments, flags and shape checks are
what they are in that call. Tensors of the model are placeholders with their names: what a graph says of a layer it says
by who reads its weight.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from qkernels.modules.calling import Call, device_of
from qkernels.modules.eval_mode import answering
from qkernels.modules.watching import watching
from qkernels.nn.dequantized import ASKS
from qkernels.utils.errors import first_line


class CaptureError(ValueError):
    """A call that torch.export cannot follow; the message is torch's reason."""


@dataclass(frozen=True)
class Capture:
    """The ATen graph of one call of a module of a model.

    Attributes:
        prefix: name of the module in the model, with a dot behind it; "" for the model itself.
        graph: placeholders are the module's tensors, then the call's inputs; in-place operations are still there.
        tensors: placeholder -> full name of the parameter or buffer in the model.
    """

    prefix: str
    graph: fx.Graph
    tensors: dict[fx.Node, str]

    def owner(self, node: Any) -> tuple[str, str] | None:
        """(module, key) of the model's tensor that the node is; None for any other node."""
        name = self.tensors.get(node) if isinstance(node, fx.Node) else None
        if name is None:
            return None
        module, _, key = name.rpartition(".")
        return module, key

    def scope(self, node: fx.Node) -> list[str]:
        """Full names of the modules in whose call the node was computed, outermost first."""
        stack = node.meta.get("nn_module_stack") or {}
        return [(self.prefix + name).rstrip(".") for name, _ in stack.values()]


def capture(model: nn.Module, call: Call, prefix: str = "") -> Capture:
    """The graph of ``model`` when it is called so; the model is left as it was.

    Raises:
        CaptureError: torch.export cannot follow the forward, for example where it branches on values.
    """
    program = exported(model, call)
    signature = program.graph_signature
    names: Mapping[str, str] = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    tensors = {n: prefix + names[n.name] for n in program.graph.nodes if n.name in names}
    return Capture(prefix, program.graph, tensors)


def exported(
    model: nn.Module, call: Call, free_sizes: bool | None = None
) -> torch.export.ExportedProgram:
    """What torch.export makes of ``model`` when it is called so.

    ``free_sizes``: True lets every size of the call's tensors be another later, False only the first (the batch), where
    the model allows it; None fixes all to those of the call.

    Raises:
        CaptureError: torch.export cannot follow the forward, for example where it branches on values.
    """
    with answering(model), _quiet():
        try:
            shapes = None if free_sizes is None else _free(model, call, free_sizes)
            return torch.export.export(
                model, call.args, call.kwargs, strict=False, dynamic_shapes=shapes
            )
        except (
            Exception
        ) as error:  # torch's own, and whatever the forward raises on tensors without values
            raise CaptureError(_reason(error)) from error


def _free(model: nn.Module, call: Call, all_sizes: bool) -> Any:
    shapes = torch.export.ShapesCollection()
    for x in pytree.tree_leaves((call.args, call.kwargs)):
        if isinstance(x, Tensor):
            channels = 1 if x.dim() == 4 else x.dim() - 1
            features = channels if x.is_floating_point() else x.dim()  # which no model leaves free
            shapes[x] = [
                torch.export.Dim.AUTO
                if i == 0 or (all_sizes and i != features)
                else torch.export.Dim.STATIC
                for i in range(x.dim())
            ]
    return shapes.dynamic_shapes(model, call.args, call.kwargs)


def captures(model: nn.Module, call: Call) -> Iterator[Capture | str]:
    """The capture of the model; where it cannot be captured a sentence why, then captures of its largest parts.

    A part takes part only if the call runs it once, and reads its tensors nowhere outside of it: what its graph does
    not show would otherwise go on reading what was changed.
    """
    try:
        yield capture(model, call)
    except CaptureError as error:
        yield f"{type(model).__name__} cannot be captured ({error}); searched in its parts"
        yield from _parts(model, "", Watched(model, call))


def _parts(module: nn.Module, prefix: str, watched: Watched) -> Iterator[Capture]:
    if type(module) is nn.Sequential:
        yield from _stretches(module, prefix, watched)
        return
    for name, child in module.named_children():
        yield from _part(child, f"{prefix}{name}", watched)


def _part(module: nn.Module, name: str, watched: Watched) -> Iterator[Capture]:
    if not any(True for _ in module.children()):
        return
    try:
        if not watched.is_closed(name):
            raise CaptureError
        yield capture(module, watched.calls[name], f"{name}.")
    except CaptureError:
        yield from _parts(module, f"{name}.", watched)


def _stretches(module: nn.Sequential, prefix: str, watched: Watched) -> Iterator[Capture]:
    """Captures of the longest stretches of children, which an nn.Sequential calls one after the other."""
    stretch: OrderedDict[str, nn.Module] = OrderedDict()
    for name, child in [*module._modules.items(), ("", None)]:
        full = f"{prefix}{name}"
        if (
            child is not None
            and watched.is_closed(full, stateless=True)
            and _is_capturable(child, full, watched)
        ):
            stretch[name] = child
            continue
        if len(stretch) > 1:
            first = f"{prefix}{next(iter(stretch))}"
            yield capture(nn.Sequential(stretch), watched.calls[first], prefix)
        if child is not None:
            yield from _part(child, full, watched)
        stretch = OrderedDict()


def _is_capturable(module: nn.Module, name: str, watched: Watched) -> bool:
    try:
        capture(module, watched.calls[watched.name_of(module)], f"{name}.")
    except CaptureError:
        return False
    return True


class Watched(TorchFunctionMode):
    """One run of a model: how each module was called (``calls``), and within which modules its tensors were read."""

    def __init__(self, model: nn.Module, call: Call) -> None:
        super().__init__()
        self.calls: dict[str, Call] = {}
        self._counts: Counter[str] = Counter()
        self._stack: list[str] = []
        self._names = {id(m): n for n, m in model.named_modules()}
        tensors = (*model.named_parameters(), *model.named_buffers())
        self._tensors = {id(t): n for n, t in tensors}
        self._reads: dict[str, set[tuple[str, ...]]] = {}
        parts = dict(model.named_modules())
        watched = watching(parts, self._enter, self._leave, first=True, always=True)
        with watched, answering(model), self:
            call.run(model)

    def _enter(self, name: str, call: Call) -> None:
        self._stack.append(name)
        self._counts[name] += 1
        self.calls[name] = call

    def _leave(self, *_: Any) -> None:
        self._stack.pop()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if self._stack and func not in ASKS:
            for value in pytree.tree_leaves((args, kwargs)):
                if isinstance(value, Tensor) and id(value) in self._tensors:
                    self._reads.setdefault(self._tensors[id(value)], set()).add(tuple(self._stack))
        return func(*args, **(kwargs or {}))

    def name_of(self, module: nn.Module) -> str:
        """The first name of a module."""
        return self._names[id(module)]

    def is_closed(self, name: str, *, stateless: bool = False) -> bool:
        """Whether the module ran once, and its tensors were read only while it did.

        With ``stateless``, one without tensors may have run any number of times.
        """
        inside = [reads for tensor, reads in self._reads.items() if tensor.startswith(f"{name}.")]
        once = self._counts[name] == 1 or (stateless and not inside)
        return once and all(name in stack for reads in inside for stack in reads)


def guessed_call(model: nn.Module) -> Call | None:
    """A call that the model answers, with an input for its first layer; None where no guess succeeds.

    It stands in where nobody gave an example and only the order of layers counts.
    """
    for x in _guesses(model):
        call = Call((x,))
        try:
            with answering(model):
                call.run(model)
        except Exception:  # this was no input for it
            continue
        return call
    return None


def _guesses(model: nn.Module) -> Iterator[Tensor]:
    first = next(
        (m for m in model.modules() if any(p.dim() > 1 for p in m.parameters(False))), None
    )
    if first is None or (weight := next(first.parameters())).is_meta:
        return
    like: Any = {"dtype": weight.dtype, "device": device_of(model)}
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(**like)

    if isinstance(first, nn.Conv2d):
        yield from (normal(2, first.in_channels, size, size) for size in (32, 64, 224, 28, 299))
    elif isinstance(first, nn.Conv1d):
        yield from (normal(2, first.in_channels, size) for size in (64, 512, 4096))
    elif isinstance(first, nn.Linear):
        yield from (normal(*size, first.in_features) for size in ((2,), (2, 8)))
    elif isinstance(first, nn.Embedding):
        yield torch.zeros(2, 8, dtype=torch.int64, device=like["device"])


def _reason(error: BaseException) -> str:
    """The first line of torch's reason, with the line of the user's code where torch names it."""
    text = str(error)
    if unknown := re.search(r"Found <class '([^']*)'> in output, which is not a known type", text):
        return (
            f"it answers with a {unknown[1].rpartition('.')[2]}, an object whose tensors torch does not know; "
            "where that is a cache for generation, pass use_cache=False"
        )
    line = next((x.strip() for x in text.splitlines() if x.strip().startswith("File ")), "")
    return first_line(error) + (f"; {line}" if line and "torch" not in line else "")


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stderr(io.StringIO()),
        ):  # where torch prints a failed graph
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
