"""Modules whose products are hidden, rebuilt from ordinary layers, so that conversion finds those."""

from qkernels.plain.attention import PlainAttention
from qkernels.plain.cells import PlainCell, PlainGRUCell, PlainLSTMCell, PlainRNNCell
from qkernels.plain.form import PlainForm
from qkernels.plain.own_forward import plain_layer, recomputing_hooks
from qkernels.plain.recurrent import PlainGRU, PlainLSTM, PlainRecurrent, PlainRNN
from qkernels.plain.registry import is_plain, plain_class, plain_form, register
from qkernels.plain.same_padding import SamePaddedConv2d

__all__ = [
    "PlainAttention",
    "PlainCell",
    "PlainForm",
    "PlainGRU",
    "PlainGRUCell",
    "PlainLSTM",
    "PlainLSTMCell",
    "PlainRNN",
    "PlainRNNCell",
    "PlainRecurrent",
    "SamePaddedConv2d",
    "is_plain",
    "plain_class",
    "plain_form",
    "plain_layer",
    "recomputing_hooks",
    "register",
]
