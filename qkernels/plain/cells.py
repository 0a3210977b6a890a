"""LSTMCell, GRUCell and RNNCell whose two products are linear layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from qkernels.plain.form import PlainForm, fill, spend_weight_hooks
from qkernels.plain.gates import GATES, gru_step, lstm_step, rnn_step


class PlainCell(nn.modules.rnn.RNNCellBase):
    """What the three cells share: ``ih``, the ``nn.Linear`` of the input, and ``hh``, that of the state.

    torch's names (``weight_ih``, ``bias_hh``, ...) are read from them.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        mode: str,
    ) -> None:
        nn.Module.__init__(self)
        self.input_size, self.hidden_size, self.bias = input_size, hidden_size, bias
        gates = GATES[mode] * hidden_size
        self.ih = nn.Linear(input_size, gates, bias, device, dtype)
        self.hh = nn.Linear(hidden_size, gates, bias, device, dtype)

    @classmethod
    def from_float(cls, cell: nn.modules.rnn.RNNCellBase) -> PlainCell:
        """The plain form, which shares the parameters of ``cell`` (also those on the meta device)."""
        with torch.device("meta"):
            new = cls.from_scheme(_scheme(cell))
        fill(new.ih, cell.weight_ih, cell.bias_ih if cell.bias else None)
        fill(new.hh, cell.weight_hh, cell.bias_hh if cell.bias else None)
        return new.train(cell.training)

    def scheme(self) -> dict[str, Any]:
        """What ``from_scheme`` needs to build this module without its tensors; JSON-able."""
        return {"kind": type(self).__name__, **_scheme(self)}

    @classmethod
    def from_scheme(cls, scheme: dict[str, Any]) -> PlainCell:
        """An empty module of this scheme; built under ``torch.device("meta")`` too."""
        return cls(**{k: v for k, v in scheme.items() if k != "kind"})

    @property
    def weight_ih(self) -> Tensor:  # type: ignore[override]
        """The weight of the product with the input."""
        return self.ih.weight

    @property
    def weight_hh(self) -> Tensor:  # type: ignore[override]
        """The weight of the product with the state."""
        return self.hh.weight

    @property
    def bias_ih(self) -> Tensor | None:  # type: ignore[override]
        """The bias of the product with the input."""
        return self.ih.bias

    @property
    def bias_hh(self) -> Tensor | None:  # type: ignore[override]
        """The bias of the product with the state."""
        return self.hh.bias

    def _batch(self, x: Tensor, name: str) -> Tensor:
        """``x`` [N, width], where it may have been [width]."""
        if x.dim() not in (1, 2):
            raise ValueError(
                f"{type(self).__name__}: Expected {name} to be 1D or 2D, got {x.dim()}D instead"
            )
        return x.unsqueeze(0) if x.dim() == 1 else x

    def _products(self, input: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Both products and the state h, zeros by default."""
        x = self._batch(input, "input")
        h = x.new_zeros(x.shape[0], self.hidden_size) if h is None else self._batch(h, "hidden")
        return self.ih(x), self.hh(h), h


class PlainLSTMCell(PlainCell, nn.LSTMCell):
    """``nn.LSTMCell`` of linear layers, see `PlainCell`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        PlainCell.__init__(self, *args, **kwargs, mode="LSTM")

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        ih, hh, h = self._products(input, None if hx is None else hx[0])
        cell = torch.zeros_like(h) if hx is None else self._batch(hx[1], "hx[1]")
        h, cell = lstm_step(ih, hh, cell)
        return (h.squeeze(0), cell.squeeze(0)) if input.dim() == 1 else (h, cell)


class PlainGRUCell(PlainCell, nn.GRUCell):
    """``nn.GRUCell`` of linear layers, see `PlainCell`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        PlainCell.__init__(self, *args, **kwargs, mode="GRU")

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        h = gru_step(*self._products(input, hx))
        return h.squeeze(0) if input.dim() == 1 else h


class PlainRNNCell(PlainCell, nn.RNNCell):
    """``nn.RNNCell`` of linear layers, see `PlainCell`."""

    def __init__(self, *args: Any, nonlinearity: str = "tanh", **kwargs: Any) -> None:
        PlainCell.__init__(self, *args, **kwargs, mode=f"RNN_{nonlinearity.upper()}")
        self.nonlinearity = nonlinearity

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        ih, hh, _ = self._products(input, hx)
        h = rnn_step(ih, hh, f"RNN_{self.nonlinearity.upper()}")
        return h.squeeze(0) if input.dim() == 1 else h


def _scheme(cell: nn.modules.rnn.RNNCellBase) -> dict[str, Any]:
    names = ["input_size", "hidden_size", "bias"] + ["nonlinearity"] * isinstance(cell, nn.RNNCell)
    return {name: getattr(cell, name) for name in names}


def plain_cell(cell: nn.modules.rnn.RNNCellBase) -> PlainForm:
    """Two linear layers, with the function of the cell."""
    spent = spend_weight_hooks(cell, (torch.zeros(1, cell.input_size),))
    kind: type[PlainCell]
    if isinstance(cell, nn.LSTMCell):
        kind = PlainLSTMCell
    else:
        kind = PlainGRUCell if isinstance(cell, nn.GRUCell) else PlainRNNCell
    name = kind.__name__.removeprefix("Plain")
    return PlainForm(kind.from_float(cell), f"{name} as two linear layers", spent)
