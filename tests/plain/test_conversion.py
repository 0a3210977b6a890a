"""Plain forms go through `quantize` as any model does: every product becomes int8."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qkernels as qk
from qkernels.nn import QuantLinear
from qkernels.plain import plain_form


def make_plain(model: nn.Module) -> nn.Module:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            form = plain_form(child)
            if form is not None and form.module is not None:
                setattr(parent, name, form.module)
    return model


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(16, 24, 2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(48, 24, batch_first=True)
        self.cell = nn.GRUCell(24, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.gru(self.lstm(x)[0])[1][-1]
        return self.head(self.cell(y))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x, src_key_padding_mask=self.padding(x))[:, :3]

    def padding(self, x: Tensor) -> Tensor:
        mask = torch.zeros(x.shape[:2], dtype=torch.bool)
        mask[1:, 4:] = True
        return mask


@pytest.mark.parametrize("scheme", ["dynamic", "static", "weight_only"])
@pytest.mark.parametrize("build", [Tagger, Encoder])
def test_every_product_of_the_plain_form_becomes_int8(build: Any, scheme: str) -> None:
    torch.manual_seed(0)
    model, x = build().eval(), torch.randn(8, 7, 16)
    with torch.no_grad():
        expected = model(x)
        int8 = qk.quantize(make_plain(model), scheme, [x] if scheme == "static" else None)
        y = int8(x)
    assert not any(type(m) is nn.Linear for m in int8.modules())
    assert sum(isinstance(m, QuantLinear) for m in int8.modules()) >= 12
    assert float((y - expected).norm() / expected.norm()) < 0.04
    assert next(int8.parameters()).dtype == torch.float32


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y, weights = self.attention(x, x, x)
        return y + weights.sum()


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@pytest.mark.parametrize("build", [Tagger, SelfAttention, Layer])
def test_plain_forms_are_captured_by_export_with_their_bits_at_any_batch(build: Any) -> None:
    torch.manual_seed(0)
    int8 = qk.quantize(make_plain(build().eval()), "dynamic")
    free = ({0: torch.export.Dim.AUTO},)
    program = torch.export.export(int8, (torch.randn(3, 5, 16),), strict=False, dynamic_shapes=free)
    x = torch.randn(4, 5, 16)
    assert torch.equal(program.module()(x), int8(x))
