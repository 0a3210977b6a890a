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
    i, f, g, o = (ih + hh).chunk(4, -1)
    cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(cell)
    return (h if project is None else project(h)), cell


def gru_step(ih: Tensor, hh: Tensor, h: Tensor) -> Tensor:
    """h [N, hidden] of the products ``ih`` and ``hh`` [N, 3 * hidden]: gates r, z, n."""
    (ir, iz, i_n), (hr, hz, h_n) = ih.chunk(3, -1), hh.chunk(3, -1)
    z = torch.sigmoid(iz + hz)
    new = torch.tanh(i_n + torch.sigmoid(ir + hr) * h_n)
    return (h - new) * z + new


def rnn_step(ih: Tensor, hh: Tensor, mode: str) -> Tensor:
    """h [N, hidden] of the products ``ih`` and ``hh`` [N, hidden]."""
    return torch.tanh(ih + hh) if mode == "RNN_TANH" else torch.relu(ih + hh)
