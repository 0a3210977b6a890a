"""Which plain form a module has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from qkernels.plain.attention import PlainAttention, plain_attention
from qkernels.plain.cells import PlainGRUCell, PlainLSTMCell, PlainRNNCell, plain_cell
from qkernels.plain.form import PlainForm
from qkernels.plain.own_forward import plain_layer
from qkernels.plain.recurrent import PlainGRU, PlainLSTM, PlainRNN, plain_recurrent
from qkernels.plain.same_padding import SamePaddedConv2d

Make = Callable[[Any], PlainForm]
_MAKERS: dict[type[nn.Module], Make] = {
    nn.MultiheadAttention: plain_attention,
    **dict.fromkeys((nn.LSTM, nn.GRU, nn.RNN), plain_recurrent),
    **dict.fromkeys((nn.LSTMCell, nn.GRUCell, nn.RNNCell), plain_cell),
}


_KINDS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        PlainAttention, PlainLSTM, PlainGRU, PlainRNN, PlainLSTMCell, PlainGRUCell, PlainRNNCell, SamePaddedConv2d,
    )
}  # fmt: skip


def register(float_class: type[nn.Module], make: Make, kind: Any = None) -> None:
    """Give modules of this class a plain form; a later call for the same class replaces the former.

    Args:
        float_class: it counts for subclasses too, as long as they inherit its forward.
        make: from such a module its `PlainForm`. The new module computes the same function, shares the parameters of
            the old one where it can, and holds its products in ordinary ``nn.Linear`` and convolutions.
        kind: the class of the new module, whose ``scheme`` and ``from_scheme`` a checkpoint keeps and builds it by;
            None where the new module is an ordinary layer itself.
    """
    _MAKERS[float_class] = make
    if kind is not None:
        _KINDS[kind.__name__] = kind


def is_plain(module: nn.Module) -> bool:
    """Whether the module is a plain form, which a checkpoint keeps by its scheme."""
    return type(module) in _KINDS.values()


def plain_class(name: str) -> Any:
    """The class of a plain form by its name; None for an unknown one."""
    return _KINDS.get(name)


def plain_form(module: nn.Module) -> PlainForm | None:
    """The same function with ordinary layers; None where the module is ordinary already or nothing is known of it.

    The module is left as it was. Layers whose forward is their own, or whose weight is recomputed, are run on random
    inputs, see `plain_layer`.
    """
    if "forward" in vars(module):  # what was patched into the instance is not the class's function
        return None
    for kind in type(module).__mro__:
        if kind in _MAKERS:
            return _MAKERS[kind](module) if type(module).forward is kind.forward else None
    return plain_layer(module)
