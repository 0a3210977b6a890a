"""LSTM, GRU and RNN whose products are linear layers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from qkernels.plain.form import PlainForm, fill, spend_weight_hooks
from qkernels.plain.gates import GATES, gru_step, lstm_step, rnn_step

State = tuple[Tensor, ...]  # (h,) or (h, c), each [N, width]
_WEIGHT = re.compile(r"(weight|bias)_(ih|hh|hr)_(l\d+(?:_reverse)?)")
_SETTINGS = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout")


class PlainRecurrent(nn.RNNBase):
    """What the three recurrent modules share.

    For each layer and direction there is ``ih_l0``, the ``nn.Linear`` of the input, called once for all time steps;
    ``hh_l0``, that of the recurrent product, called once a step; and with ``proj_size`` ``hr_l0``, the projection.
    torch's names (``weight_ih_l0``, ``bias_hh_l1_reverse``, ...) are read from them. ``flatten_parameters`` does
    nothing: there is no fused weight to keep.
    """

    _flat_weight_refs = ()  # type: ignore[assignment]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        mode: str,
    ) -> None:
        nn.Module.__init__(self)
        self.mode = mode
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout = bias, batch_first, dropout
        self.bidirectional, self.proj_size = bidirectional, proj_size
        out = proj_size or hidden_size
        for layer in range(num_layers):
            width = out * (1 + bidirectional) if layer else input_size
            for name in self._suffixes(layer):
                gates = GATES[mode] * hidden_size
                setattr(self, f"ih_{name}", nn.Linear(width, gates, bias, device, dtype))
                setattr(self, f"hh_{name}", nn.Linear(out, gates, bias, device, dtype))
                if proj_size:
                    projection = nn.Linear(hidden_size, proj_size, False, device, dtype)
                    setattr(self, f"hr_{name}", projection)

    def _suffixes(self, layer: int) -> list[str]:
        return [f"l{layer}", f"l{layer}_reverse"][: 1 + self.bidirectional]

    # ---- building

    @classmethod
    def from_float(cls, module: nn.RNNBase) -> PlainRecurrent:
        """The plain form, which shares the parameters of ``module`` (also those on the meta device)."""
        scheme = _scheme(module)
        with torch.device("meta"):
            new = cls.from_scheme(scheme)
        for name, linear in new.named_children():
            assert isinstance(linear, nn.Linear)
            bias = None if linear.bias is None else getattr(module, f"bias_{name}")
            fill(linear, getattr(module, f"weight_{name}"), bias)
        return new.train(module.training)

    def scheme(self) -> dict[str, Any]:
        """What ``from_scheme`` needs to build this module without its tensors; JSON-able."""
        return {"kind": type(self).__name__, **_scheme(self)}

    @classmethod
    def from_scheme(cls, scheme: dict[str, Any]) -> PlainRecurrent:
        """An empty module of this scheme; built under ``torch.device("meta")`` too."""
        return cls(**{k: v for k, v in scheme.items() if k != "kind"})

    # ---- what nn.RNNBase keeps about its flat weights

    def __getattr__(self, name: str) -> Any:
        match = _WEIGHT.fullmatch(name)
        if match is None:
            return super().__getattr__(name)
        kind, product, place = match.groups()
        value = getattr(super().__getattr__(f"{product}_{place}"), kind)
        if value is None:
            raise AttributeError(f"{type(self).__name__} has no {name}: it has no bias")
        return value

    @property
    def _flat_weights_names(self) -> list[str]:  # type: ignore[override]
        return [name for names in self._all_weights for name in names]

    @property
    def _all_weights(self) -> list[list[str]]:  # type: ignore[override]
        kinds = ["weight_ih", "weight_hh", *["bias_ih", "bias_hh"] * self.bias]
        kinds += ["weight_hr"] * bool(self.proj_size)
        places = [name for layer in range(self.num_layers) for name in self._suffixes(layer)]
        return [[f"{kind}_{place}" for kind in kinds] for place in places]

    @property
    def _flat_weights(self) -> list[Tensor]:  # type: ignore[override]
        return [getattr(self, name) for name in self._flat_weights_names]

    def __setattr__(self, name: str, value: Any) -> None:
        nn.Module.__setattr__(self, name, value)

    def flatten_parameters(self) -> None:
        """Has no effect: there is no fused weight."""

    def _apply(self, fn: Any, recurse: bool = True) -> PlainRecurrent:
        return nn.Module._apply(self, fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        nn.Module.__setstate__(self, state)

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        """The shape alone: the linear layers check the dtype."""
        if input.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size={self.input_size}, got {input.shape[-1]}"
            )

    # ---- forward

    def forward(self, input: Any, hx: Any = None) -> Any:
        """Answer as torch does: ``input`` [T, N, F], [N, T, F], [T, F] or a PackedSequence; (output, last state)."""
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx)
        if input.dim() not in (2, 3):
            raise ValueError(
                f"{type(self).__name__}: Expected input to be 2D or 3D, got {input.dim()}D instead"
            )
        dim, batched = (0 if self.batch_first else 1), input.dim() == 3
        if not batched:
            input = input.unsqueeze(dim)
        state = self._start(input, hx, None, batched)
        steps = input.transpose(0, 1) if self.batch_first else input
        if steps.shape[0] == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        y, last = self._run(steps, state, None)
        output = torch.stack(y, 1 - dim)
        if not batched:
            output, last = output.squeeze(dim), tuple(s.squeeze(1) for s in last)
        return output, self._unwrap(last)

    def _forward_packed(self, packed: PackedSequence, hx: Any) -> Any:
        data, batch_sizes, order, back = packed
        state = self._start(data, hx, batch_sizes, True)
        if order is not None and hx is not None:
            state = tuple(s.index_select(1, order) for s in state)
        y, last = self._run(data, state, batch_sizes.tolist())
        if back is not None:
            last = tuple(s.index_select(1, back) for s in last)
        return PackedSequence(torch.cat(y), batch_sizes, order, back), self._unwrap(last)

    def _unwrap(self, state: State) -> Any:
        return state if self.mode == "LSTM" else state[0]

    def _start(self, input: Tensor, hx: Any, batch_sizes: Tensor | None, batched: bool) -> State:
        """The checked state, each [layers * directions, N, width]; zeros by default."""
        sizes = [self.get_expected_hidden_size(input, batch_sizes)]
        if self.mode == "LSTM":
            sizes.append((*sizes[0][:2], self.hidden_size))
        if hx is None:
            self.check_input(input, batch_sizes)
            return tuple(input.new_zeros(size) for size in sizes)
        state = tuple(hx) if self.mode == "LSTM" else (hx,)
        if any(s.dim() != 2 + batched for s in state):
            dims = ", ".join(f"{s.dim()}-D" for s in state)
            kind = "batched 3-D" if batched else "unbatched 2-D"
            raise RuntimeError(
                f"For {kind} input, hx should also be {2 + batched}-D but got ({dims}) tensor"
            )
        if not batched:
            state = tuple(s.unsqueeze(1) for s in state)
        self.check_forward_args(input, state if self.mode == "LSTM" else state[0], batch_sizes)  # type: ignore[arg-type]
        return state

    def _run(
        self, x: Tensor, state: State, batch_sizes: list[int] | None
    ) -> tuple[list[Tensor], State]:
        """Run all layers; return the output of each step and the last state.

        ``x``: [T, N, F], or [rows, F] with ``batch_sizes`` rows a step.
        """
        last: list[State] = []
        for layer in range(self.num_layers):
            if layer and self.training and self.dropout:
                x = F.dropout(x, self.dropout)
            runs = []
            for name in self._suffixes(layer):
                first = tuple(s[len(last)] for s in state)
                gates = getattr(self, f"ih_{name}")(x)
                steps = gates.unbind(0) if batch_sizes is None else gates.split(batch_sizes)
                outputs, end = self._scan(name, steps, first, batch_sizes is not None)
                runs.append(outputs)
                last.append(end)
            y = [torch.cat(parts, -1) if len(parts) > 1 else parts[0] for parts in zip(*runs)]  # noqa: B905
            x = torch.stack(y) if batch_sizes is None else torch.cat(y)
        return y, tuple(torch.stack(parts) for parts in zip(*last, strict=True))

    def _scan(
        self, name: str, steps: Sequence[Tensor], state: State, ragged: bool
    ) -> tuple[list[Tensor], State]:
        """One layer in one direction. Of a ragged batch the first rows go on, the others keep their state."""
        step = self._step(name)
        outputs: list[Tensor] = []
        backward = name.endswith("_reverse")
        for gates in reversed(steps) if backward else steps:
            rows = gates.shape[0]
            if not ragged or rows == state[0].shape[0]:
                state = step(gates, state)
                outputs.append(state[0])
                continue
            new = step(gates, tuple(s[:rows] for s in state))
            outputs.append(new[0])
            state = tuple(torch.cat([n, s[rows:]]) for n, s in zip(new, state, strict=True))
        return (outputs[::-1] if backward else outputs), state

    def _step(self, name: str) -> Callable[[Tensor, State], State]:
        """(input gates [N, ...], state) -> new state."""
        recurrent = getattr(self, f"hh_{name}")
        if self.mode == "LSTM":
            project = getattr(self, f"hr_{name}") if self.proj_size else None
            return lambda gates, state: lstm_step(gates, recurrent(state[0]), state[1], project)
        if self.mode == "GRU":
            return lambda gates, state: (gru_step(gates, recurrent(state[0]), state[0]),)
        return lambda gates, state: (rnn_step(gates, recurrent(state[0]), self.mode),)


class PlainLSTM(PlainRecurrent, nn.LSTM):
    """``nn.LSTM`` of linear layers, see `PlainRecurrent`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        PlainRecurrent.__init__(self, *args, **kwargs, mode="LSTM")


class PlainGRU(PlainRecurrent, nn.GRU):
    """``nn.GRU`` of linear layers, see `PlainRecurrent`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        PlainRecurrent.__init__(self, *args, **kwargs, mode="GRU")


class PlainRNN(PlainRecurrent, nn.RNN):
    """``nn.RNN`` of linear layers, see `PlainRecurrent`."""

    def __init__(self, *args: Any, nonlinearity: str = "tanh", **kwargs: Any) -> None:
        PlainRecurrent.__init__(self, *args, **kwargs, mode=f"RNN_{nonlinearity.upper()}")
        self.nonlinearity = nonlinearity


def _scheme(module: nn.RNNBase) -> dict[str, Any]:
    names = [*_SETTINGS, "bidirectional", "proj_size"]
    names += ["nonlinearity"] * isinstance(module, nn.RNN)
    return {name: getattr(module, name) for name in names}


def plain_recurrent(module: nn.RNNBase) -> PlainForm:
    """Two linear layers for each layer and direction, with the function of the module."""
    spent = spend_weight_hooks(module, (torch.zeros(1, 1, module.input_size),))
    kind: type[PlainRecurrent]
    if isinstance(module, nn.LSTM):
        kind = PlainLSTM
    else:
        kind = PlainGRU if isinstance(module, nn.GRU) else PlainRNN
    new = kind.from_float(module)
    name = kind.__name__.removeprefix("Plain")
    return PlainForm(new, f"{name} as {len(list(new.children()))} linear layers", spent)
