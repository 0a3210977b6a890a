"""torch's own transformers with masks and padding: their fused float path must stay off, also in a loaded model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qkernels as qk

SCHEMES = ["static", "dynamic", "weight_only"]
D, HEADS, T = 16, 2, 6
PAD = torch.tensor([[False] * 6, [False] * 4 + [True] * 2, [False] * 2 + [True] * 4])
CAUSAL = nn.Transformer.generate_square_subsequent_mask(T)


def encoder(layers: int = 2, **more: Any) -> nn.Module:
    torch.manual_seed(0)
    settings: Any = {"dim_feedforward": 32, "dropout": 0.1, "batch_first": True} | more
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(D, HEADS, **settings), layers).eval()


def decoder(**more: Any) -> nn.Module:
    torch.manual_seed(0)
    settings: Any = {"dim_feedforward": 32, "batch_first": True} | more
    return nn.TransformerDecoder(nn.TransformerDecoderLayer(D, HEADS, **settings), 2).eval()


def tokens(seed: int = 1) -> Tensor:
    return torch.randn(3, T, D, generator=torch.Generator().manual_seed(seed))


def over_time(x: Tensor) -> Tensor:
    return x.transpose(0, 1).contiguous()


Case = tuple[Callable[[], nn.Module], dict[str, Any]]
X = tokens()
CASES: dict[str, Case] = {
    "plain": (encoder, {"src": X}),
    "padding": (encoder, {"src": X, "src_key_padding_mask": PAD}),
    "causal": (encoder, {"src": X, "mask": CAUSAL, "is_causal": True}),
    "mask and padding": (encoder, {"src": X, "mask": CAUSAL.bool(), "src_key_padding_mask": PAD}),
    "gelu": (lambda: encoder(activation="gelu"), {"src": X, "src_key_padding_mask": PAD}),
    "norm first": (lambda: encoder(norm_first=True), {"src": X, "src_key_padding_mask": PAD}),
    "time first": (lambda: encoder(batch_first=False), {"src": over_time(X), "src_key_padding_mask": PAD}),
    "no bias": (lambda: encoder(bias=False), {"src": X, "src_key_padding_mask": PAD}),
    "one layer alone": (lambda: encoder().layers[0], {"src": X, "src_key_padding_mask": PAD}),
    "nested tensors off": (
        lambda: nn.TransformerEncoder(encoder().layers[0], 2, enable_nested_tensor=False).eval(),
        {"src": X, "src_key_padding_mask": PAD},
    ),
    "decoder": (
        decoder,
        {"tgt": X, "memory": tokens(2), "tgt_mask": CAUSAL, "tgt_is_causal": True,
         "tgt_key_padding_mask": torch.zeros_like(PAD), "memory_key_padding_mask": PAD},
    ),
    "decoder, norm first": (lambda: decoder(norm_first=True), {"tgt": X, "memory": tokens(2)}),
    "whole transformer": (
        lambda: nn.Transformer(D, HEADS, 1, 1, 32, batch_first=True).eval(),
        {"src": X, "tgt": tokens(2), "src_key_padding_mask": PAD, "memory_key_padding_mask": PAD},
    ),
}  # fmt: skip


def error(y: Tensor, exact: Tensor, padding: Tensor | None = None) -> float:
    if (
        padding is not None
    ):  # what stands at padded places is undefined: torch's fast path writes zeros
        y, exact = y[~padding], exact[~padding]
    return float((y - exact).norm() / exact.norm())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("case", CASES)
def test_a_transformer_of_torch_answers_without_gradients_and_after_load(
    case: str, scheme: str, tmp_path: Path
) -> None:
    make, call = CASES[case]
    torch.manual_seed(0)
    model = make()
    padding = call.get("src_key_padding_mask") if "tgt" not in call else None
    if case == "time first":
        padding = PAD.T
    with torch.enable_grad():  # torch's fast path is off
        expected = model(**call).detach()
    int8 = qk.quantize(model, scheme, call)
    kept = [m for m in int8.modules() if type(m) in (nn.Linear, nn.MultiheadAttention)]
    assert kept == []
    qk.save(int8, tmp_path / "m.safetensors")
    loaded = qk.load(tmp_path / "m.safetensors", make)
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            answers = int8(**call), loaded(**call)
        assert error(answers[0], expected, padding) < 0.05
        assert torch.equal(*answers)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_single_excluded_layer_does_not_bring_the_fast_path_back(scheme: str) -> None:
    model, call = encoder(), {"src": X, "src_key_padding_mask": PAD}
    with torch.enable_grad():
        expected = model(**call).detach()
    for exclude in (
        ["layers.0"],
        ["layers.1.self_attn"],
        ["*.linear1"],
        ["layers.1.linear2", "MultiheadAttention"],
    ):
        int8 = qk.quantize(model, {"activation": scheme, "exclude": exclude}, call)
        with torch.no_grad():
            assert error(int8(**call), expected, PAD) < 0.05


def test_a_batch_that_may_mean_two_things_is_tried_past_the_fast_path() -> None:
    batches = [(X, None, PAD), (X, None, PAD)]
    for data in ([{"src": X, "src_key_padding_mask": PAD, "labels": PAD}], [(batches[0], PAD)]):
        int8 = qk.quantize(encoder(), {"exclude": ["layers.0"]}, data)
        assert qk.report(int8).sqnr_db["output"] > 20


def test_the_original_keeps_its_fast_path() -> None:
    model = encoder()
    qk.quantize(model, "dynamic")
    assert model.use_nested_tensor
    assert model.layers[0].activation_relu_or_gelu == 1


def test_a_transformer_inside_of_a_model_takes_padded_tokens_after_load(tmp_path: Path) -> None:
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.body, self.head = nn.Embedding(20, D), encoder(), nn.Linear(D, 3)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.body(self.table(ids), src_key_padding_mask=ids == 0)
            return self.head(x[:, 0])

    model, ids = Classifier().eval(), torch.randint(1, 20, (3, T)).masked_fill(PAD, 0)
    expected = model(ids).detach()
    int8 = qk.quantize(model, "static", [ids])
    qk.save(int8, tmp_path / "m.safetensors")
    with torch.no_grad():
        assert error(int8(ids), expected) < 0.05
        assert torch.equal(qk.load(tmp_path / "m.safetensors", Classifier)(ids), int8(ids))
        assert torch.equal(qk.load(tmp_path / "m.safetensors", Classifier())(ids), int8(ids))
