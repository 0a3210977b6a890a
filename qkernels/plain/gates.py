"""One time step of each recurrent module, once its two products are made."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# rows of the weights, in units of hidden_size
GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}


def lstm_step(
    ih: Tensor, hh: Tensor, cell: Tensor, project: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """(h, c) [N, hidden] of the products ``ih`` and ``hh`` [N, 4 * hidden]: gates i, f, g, o."""
    gates = ih + hh
    i, f, _, o = torch.sigmoid(gates).chunk(
        4, -1
    )  # of all at once: a call costs more than it computes
    g = torch.tanh(gates.chunk(4, -1)[2])
    cell = torch.addcmul(f * cell, i, g)
    h = o * torch.tanh(cell)
    return (h if project is None else project(h)), cell


def gru_step(ih: Tensor, hh: Tensor, h: Tensor) -> Tensor:
    """h [N, hidden] of the products ``ih`` and ``hh`` [N, 3 * hidden]: gates r, z, n."""
    (ir, iz, i_n), (hr, hz, h_n) = ih.chunk(3, -1), hh.chunk(3, -1)
    new = torch.tanh(torch.addcmul(i_n, torch.sigmoid(ir + hr), h_n))
    return torch.lerp(new, h, torch.sigmoid(iz + hz))


def rnn_step(ih: Tensor, hh: Tensor, mode: str) -> Tensor:
    """h [N, hidden] of the products ``ih`` and ``hh`` [N, hidden]."""
    return torch.tanh(ih + hh) if mode == "RNN_TANH" else torch.relu(ih + hh)
