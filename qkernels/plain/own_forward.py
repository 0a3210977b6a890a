"""Layers with a forward of their own, or with weights that each forward recomputes, made ordinary.

No class is known by name: a layer is run on random inputs, and the first ordinary layer that gives the same answers to
float rounding takes its place.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from qkernels.nn import QuantModule
from qkernels.nn.registry import spec_of
from qkernels.plain import probe
from qkernels.plain.form import PlainForm, spend_weight_hooks
from qkernels.plain.same_padding import SamePaddedConv2d
from qkernels.utils.errors import first_line

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)  # fmt: skip
Candidates = Callable[[nn.Module, list[probe.Answer]], Iterator[tuple[nn.Module, str]]]
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_GEOMETRY = ("stride", "padding", "output_padding", "dilation", "groups")


def plain_layer(module: nn.Module) -> PlainForm | None:
    """The ordinary layer with the function of this one, or why there is none; None for what needs none.

    A layer needs one if its class derives from ``nn.Linear`` or a convolution, has another forward and no `LayerSpec`
    of its own, or if its weight is no parameter of its own (parametrizations, weight norm, spectral norm, pruning). A
    module without children whose only matrix multiplies the last axis of its input becomes an ``nn.Linear`` too; such
    modules stay without a word where they compute something else.
    """
    if isinstance(module, QuantModule) or "forward" in vars(module):
        return None
    known, owned = (
        spec_of(module) is not None,
        isinstance(module._parameters.get("weight"), nn.Parameter),
    )
    if known and owned:
        return None
    kinds: tuple[type[nn.Module], ...] = (nn.Linear, *_CONVOLUTIONS)
    base = next((kind for kind in kinds if isinstance(module, kind)), None)
    if base is None:
        return _matrix_module(module)
    changed = not known and any(
        getattr(type(module), name, None) is not getattr(base, name, None)
        for name in ("forward", "_conv_forward")
    )
    if not changed and owned:
        return None
    name = _class_name(module)
    why = f"{name} has a forward of its own" if changed else "its weight is recomputed"
    refusal = _why_not_probe(module)
    if refusal is not None:
        return PlainForm(None, f"{why}, and {refusal}")
    with probe.undisturbed(module):
        inputs = _inputs(module)
        spent = spend_weight_hooks(module, (inputs[0],))
        answers = probe.ask(module, inputs)
        candidates = _linears if isinstance(module, nn.Linear) else _convolutions
        new, found = _first_equal(module, answers, candidates)
    if new is None:
        return PlainForm(None, f"{why}, and {found}")
    what = f"{name}'s own forward" if changed else f"{name} with a recomputed weight"
    return PlainForm(new.train(module.training), f"{what} as {found}", spent)


def recomputing_hooks(module: nn.Module) -> frozenset[int]:
    """Ids of the forward pre-hooks that only recompute the weight of a linear layer or convolution."""
    if not isinstance(module, (nn.Linear, *_CONVOLUTIONS)):
        return frozenset()
    with probe.undisturbed(module):
        return spend_weight_hooks(module, (_inputs(module)[0],))


def _class_name(module: nn.Module) -> str:
    kind = type(module)
    if parametrize.is_parametrized(module):
        kind = cast(Any, kind.__mro__[1])
    return kind.__name__


def _why_not_probe(module: nn.Module) -> str | None:
    tensors = [*module.parameters(), *module.buffers()]
    if any(t.is_meta for t in tensors):
        return "its weights are on the meta device: load them first"
    weight = _weight(module)
    if weight is None or weight.dtype not in _DTYPES:
        return f"its weight is {'missing' if weight is None else weight.dtype}"
    if weight.numel() == 0:
        return "its weight is empty"
    if not _takes_one_argument(module):
        return "its forward takes more than one argument"
    return None


def _weight(module: nn.Module) -> Tensor | None:
    """What ``weight`` gives, else any floating parameter."""
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor):
        return weight
    return next((p for p in module.parameters() if p.is_floating_point()), None)


def _takes_one_argument(module: nn.Module) -> bool:
    named = [
        p
        for p in inspect.signature(module.forward).parameters.values()
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if isinstance(module, _TRANSPOSED):  # output_size is an argument of the ordinary layer too
        named = [p for p in named if p.name != "output_size"]
    return len(named) == 1


def _inputs(module: nn.Module) -> list[Tensor]:
    weight = cast(Tensor, _weight(module))
    if isinstance(module, nn.Linear):
        return probe.vector_inputs(module.in_features, weight)
    assert isinstance(module, _CONVOLUTIONS)
    return probe.image_inputs(
        module.in_channels, module.kernel_size, module.stride, module.dilation, weight
    )


def _first_equal(
    module: nn.Module, answers: list[probe.Answer], candidates: Candidates
) -> tuple[nn.Module | None, str]:
    """The first candidate with these answers and its name; or None and why."""
    good = [a for a in answers if a.output is not None]
    if len(good) < (1 if candidates is _linears else 3):  # SAME padding shows at several sizes
        error = next(a.error for a in answers if a.error is not None)
        return None, f"it fails on random inputs ({type(error).__name__}: {first_line(error)})"
    for candidate, name in candidates(module, good):
        if probe.same_answers(candidate, good):
            return candidate, name
    if not probe.same_answers(_Again(module), good):
        return None, "it gives another answer at each call"
    return None, "no ordinary layer gives the same answers"


class _Again(nn.Module):
    """The module's forward once more, without hooks."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.forward = module.forward


# --- convolutions --------------------------------------------------------------------------------


def _convolutions(module: nn.Module, answers: list[probe.Answer]) -> Iterator[tuple[nn.Module, str]]:  # fmt: skip
    """Layers of the weight that reached torch: the declared geometry, then that of the call, then SAME padding."""
    called = _only_product(answers)
    if called is None:
        return
    kind = next(kind for kind in _CONVOLUTIONS if isinstance(module, kind))
    weight, bias = called["weight"], called.get("bias")
    declared = {name: getattr(module, name) for name in _GEOMETRY} | {"padding_mode": module.padding_mode}  # fmt: skip
    passed = {name: called[name] for name in _GEOMETRY if name in called}
    for geometry in (declared, passed):
        layer = _convolution(kind, weight, bias, geometry)
        if layer is not None:
            yield layer, f"an ordinary {kind.__name__}"
    if kind is nn.Conv2d:
        layer = _convolution(kind, weight, bias, passed | {"padding": 0})
        if layer is not None:
            yield SamePaddedConv2d(cast(nn.Conv2d, layer)), "SAME padding and an ordinary Conv2d"


def _only_product(answers: list[probe.Answer]) -> dict[str, Any] | None:
    """The arguments of the product, where each answer was made by one and with equal weights."""
    products = [answer.products for answer in answers]
    if any(len(made) != 1 for made in products):
        return None
    first = products[0][0].arguments
    for made in products[1:]:
        other = made[0].arguments
        if not torch.equal(first["weight"], other["weight"]):
            return None
    return first


def _convolution(
    kind: Any, weight: Tensor, bias: Tensor | None, geometry: dict[str, Any]
) -> nn.Module | None:  # fmt: skip
    groups = geometry.get("groups", 1)
    transposed = issubclass(kind, _TRANSPOSED)
    inside, outside = weight.shape[0], weight.shape[1] * groups
    channels = (inside, outside) if transposed else (outside, inside)
    arguments = {**geometry}
    if not transposed:
        arguments.pop("output_padding", None)
    try:
        layer = kind(
            *channels, tuple(weight.shape[2:]), bias=bias is not None, device="meta", **arguments
        )
    except (ValueError, TypeError, RuntimeError):
        return None
    if layer.weight.shape != weight.shape:
        return None
    layer.weight = _kept(weight)
    layer.bias = None if bias is None else _kept(bias)
    return layer


def _kept(tensor: Tensor) -> nn.Parameter:
    """The parameter itself; a copy of a weight that the next forward will write over."""
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor.detach().clone())


# --- matrices ------------------------------------------------------------------------------------


def _linears(module: nn.Module, answers: list[probe.Answer]) -> Iterator[tuple[nn.Module, str]]:
    """The weight that reached torch, then each matrix of the module, then the matrix as its answers show it."""
    called = _only_product(answers)
    if called is not None and called["weight"].dim() == 2:
        yield _linear(called["weight"], called.get("bias")), "an ordinary Linear"
    width = answers[0].input.shape[-1]
    output = answers[0].output
    assert output is not None
    offset = output[-1].flatten(0, -2)[0] if output.dim() > 2 else output[-1]  # the answer to zeros
    bias = _own_bias(module, offset)
    size = (len(offset), width)
    for matrix in (p for p in module.parameters() if p.dim() == 2):
        if tuple(matrix.shape) == size:
            yield _linear(matrix, bias), "an ordinary Linear"
        if tuple(matrix.T.shape) == size:
            yield _linear(matrix.detach().T.contiguous(), bias), "a Linear of its transposed weight"
    unit = torch.eye(width, device=offset.device, dtype=offset.dtype)
    columns = module.forward(unit.view(width, *[1] * (output.dim() - 2), width)).flatten(1)
    if columns.shape == (width, len(offset)):
        yield _linear((columns - offset).T.contiguous(), bias), "the Linear of its matrix"


def _own_bias(module: nn.Module, offset: Tensor) -> Tensor | None:
    """The answer to zeros: a vector of the module where it equals one, None for zeros, else a copy."""
    for own in module.parameters():
        if own.shape == offset.shape and torch.equal(own, offset):
            return own
    return offset.clone() if offset.any() else None


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = _kept(weight)
    layer.bias = None if bias is None else _kept(bias)  # type: ignore[assignment]
    return layer


def _matrix_module(module: nn.Module) -> PlainForm | None:
    """An ``nn.Linear`` for a module that is one under another name; None for all else.

    It has no children and no state but one matrix and at most a vector, takes one argument, and answers every input of
    two to four dimensions that it takes as the linear layer does.
    """
    parameters = list(module.parameters(recurse=False))
    matrices = [p for p in parameters if p.dim() == 2]
    children = [name for name, _ in module.named_children() if name != "parametrizations"]
    rest = [p for p in parameters if p.dim() != 2]
    simple = len(matrices) == 1 and len(rest) <= 1 and all(p.dim() == 1 for p in rest)
    if not simple or children or any(True for _ in module.buffers()):
        return None
    if type(module).forward is nn.Module.forward or _why_not_probe(module) is not None:
        return None
    with probe.undisturbed(module):
        for width in dict.fromkeys(matrices[0].shape):
            answers = probe.ask(module, probe.vector_inputs(width, matrices[0]))
            if all(a.output is None for a in answers) or not _ends_in(answers, matrices[0], width):
                continue
            new, found = _first_equal(module, answers, _linears)
            if new is not None:
                sentence = f"{_class_name(module)} as {found}"
                return PlainForm(new.train(module.training), sentence)
    return None


def _ends_in(answers: list[probe.Answer], matrix: Tensor, width: int) -> bool:
    """Whether every output has the input's shape up to the last axis, which is the matrix's other size."""
    other = matrix.numel() // width
    shapes = [(a.output.shape, a.input.shape) for a in answers if a.output is not None]
    return all(tuple(y) == (*x[:-1], other) for y, x in shapes)
