"""Which plain form a module has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from qkernels.plain.attention import plain_attention
from qkernels.plain.cells import plain_cell
from qkernels.plain.form import PlainForm
from qkernels.plain.own_forward import plain_layer
from qkernels.plain.recurrent import plain_recurrent

Make = Callable[[Any], PlainForm]
_MAKERS: dict[type[nn.Module], Make] = {
    nn.MultiheadAttention: plain_attention,
    **dict.fromkeys((nn.LSTM, nn.GRU, nn.RNN), plain_recurrent),
    **dict.fromkeys((nn.LSTMCell, nn.GRUCell, nn.RNNCell), plain_cell),
}


def register(float_class: type[nn.Module], make: Make) -> None:
    """Give modules of this class a plain form; a later call for the same class replaces the former.

    Args:
        float_class: it counts for subclasses too, as long as they inherit its forward.
        make: from such a module its `PlainForm`. The new module computes the same function, shares the parameters of
            the old one where it can, and holds its products in ordinary ``nn.Linear`` and convolutions.
    """
    _MAKERS[float_class] = make


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
