"""Attention of torch loses whole heads, and the rest answers as with them silent."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qkernels as qk
from qkernels import prune
from qkernels.measuring.costs import count_macs
from qkernels.models import changes, narrow_, sizes
from qkernels.plain import PlainAttention
from qkernels.reports import report

pytest.importorskip("torch_pruning")
WIDTH, HEADS, SIZE = 24, 4, 6
X = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0))


class Tokens(nn.Module):
    """Attention between two layers; [N, T, 24] -> [N, 3]."""

    def __init__(self, batch_first: bool = True, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.batch_first = nn.Linear(WIDTH, WIDTH), batch_first
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first, **options)
        self.head = nn.Linear(WIDTH, 3)
        for parameter in self.attention.parameters():
            nn.init.normal_(parameter, std=0.3)

    def context(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.batch_first else x.transpose(0, 1)
        y = self.first(x)
        y = y + self.attention(y, self.context(y), self.context(y), need_weights=False)[0]
        return self.head(y).mean(1 if self.batch_first else 0)


class Narrow(Tokens):
    """Keys and values of fewer channels than queries."""

    def __init__(self) -> None:
        super().__init__(kdim=8, vdim=8)

    def context(self, x: Tensor) -> Tensor:
        return x[..., :8].detach()


class Encoder(nn.Module):
    """Torch's own encoder of two layers, with padded tokens where `padded`; [N, T, 24] -> [N, 3]."""

    def __init__(self, padded: bool = False, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        options = {"batch_first": True, "dropout": 0.0} | options
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 48, **options)
        self.first, self.encoder = nn.Linear(WIDTH, WIDTH), nn.TransformerEncoder(layer, 2)
        self.head, self.padded = nn.Linear(WIDTH, 3), padded

    def forward(self, x: Tensor) -> Tensor:
        padding = torch.arange(x.shape[1]).expand(x.shape[:2]) >= 4 if self.padded else None
        y = self.first(x)
        if self.encoder.layers[0].self_attn.batch_first:
            return self.head(self.encoder(y, src_key_padding_mask=padding)[:, 0])
        y = self.encoder(y.transpose(0, 1), src_key_padding_mask=padding)
        return self.head(y[0])


MODELS = {
    "batch first": Tokens,
    "time first": lambda: Tokens(batch_first=False),
    "no bias": lambda: Tokens(bias=False),
    "keys and values of another width": Narrow,
    "an encoder": Encoder,
    "an encoder, time first": lambda: Encoder(batch_first=False),
    "an encoder, norm first": lambda: Encoder(norm_first=True),
    "an encoder with padding": lambda: Encoder(padded=True),
}


def attentions(model: nn.Module) -> dict[str, Any]:
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)}


def halved(model: nn.Module, x: Tensor = X, **how: Any) -> nn.Module:
    scores = prune.magnitude(prune.weights(model))
    settings = {"amount": 0.5, "scope": "layer", "multiple": 1, **how}
    return prune.prune_channels(model, x, scores, **settings)


def kept_columns(whole: nn.Linear, smaller: nn.Linear) -> list[int]:
    return [i for i in range(WIDTH) if (whole.weight[:, i, None] == smaller.weight).all(0).any()]


@pytest.mark.parametrize("name", MODELS)
def test_whole_heads_go_and_the_others_see_what_they_saw(name: str) -> None:
    model = MODELS[name]().eval()
    before = copy.deepcopy(model.state_dict())
    others = [n for n, m in model.named_modules() if n == "first" or n.endswith("linear1")]
    smaller = halved(model, ignore=others)
    silent = copy.deepcopy(model)
    for at, whole in attentions(silent).items():
        left = smaller.get_submodule(at)
        assert (left.num_heads, left.head_dim) == (2, SIZE)
        assert left.q_proj.out_features == left.v_proj.out_features == 2 * SIZE
        kept = kept_columns(whole.out_proj, left.out_proj)
        assert len(kept) == 2 * SIZE and len({i // SIZE for i in kept}) == 2
        whole.out_proj.weight.data[:, [i for i in range(WIDTH) if i not in kept]] = 0
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            torch.testing.assert_close(smaller(X), silent(X), rtol=1e-4, atol=1e-5)
    assert count_macs(smaller, X[:1]) < count_macs(model, X[:1])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", MODELS)
def test_the_smaller_model_is_made_again_from_its_counts(name: str) -> None:
    model = MODELS[name]().eval()
    smaller = halved(model)
    counts = report(smaller).channels
    assert counts == changes(sizes(model), smaller)
    again = narrow_(MODELS[name](), counts).eval()
    again.load_state_dict(smaller.state_dict())
    assert torch.equal(again(X), smaller(X))
    twice = halved(smaller)
    assert [m.num_heads for m in attentions(twice).values()] == [1] * len(attentions(model))
    again = narrow_(MODELS[name](), changes(sizes(model), twice)).eval()
    again.load_state_dict(twice.state_dict())
    assert torch.equal(again(X), twice(X))


@pytest.mark.parametrize("name", MODELS)
def test_it_is_quantized_and_comes_back_from_its_file(name: str, tmp_path: Path) -> None:
    model = MODELS[name]().eval()
    smaller = halved(model)
    int8 = qk.quantize(smaller, "static", [X])
    assert not [m for m in int8.modules() if type(m) is nn.Linear]
    assert (int8(X) - smaller(X)).norm() < 0.1 * smaller(X).norm()
    counts = report(smaller).channels
    for kind, saved in (("float", smaller), ("int8", int8)):
        qk.save(saved, tmp_path / kind)
        for made in (lambda: narrow_(MODELS[name](), counts), lambda: copy.deepcopy(smaller)):
            assert torch.equal(qk.load(tmp_path / kind, made)(X), saved(X))


@pytest.mark.parametrize("name", ["batch first", "an encoder"])
def test_it_compiles_to_one_program_as_the_whole_one_does(name: str) -> None:
    model = MODELS[name]().eval()
    for float_model in (model, halved(model)):
        int8 = qk.quantize(float_model, "static", [X])
        chained = qk.compile(int8, X)
        assert chained.program is not None
        torch.testing.assert_close(chained(X), int8(X), rtol=0.1, atol=0.05)


def test_scores_of_every_projection_count() -> None:
    """Two heads whose columns of the layer behind are alike differ by their values only."""
    model = Tokens().eval()
    with torch.no_grad():
        model.attention.in_proj_weight[2 * WIDTH + SIZE : 2 * WIDTH + 3 * SIZE] *= 10
        model.attention.out_proj.weight.copy_(torch.ones(WIDTH, WIDTH).cumsum(1) % SIZE)
    scores = prune.magnitude(prune.weights(model))
    assert scores["attention.in_proj_weight"].shape == (3 * WIDTH, WIDTH)
    smaller = halved(model, ignore=["first"])
    assert torch.equal(
        smaller.attention.v_proj.weight,
        model.attention.in_proj_weight[2 * WIDTH + SIZE : 2 * WIDTH + 3 * SIZE],
    )


@pytest.mark.parametrize("score", ["gradient", "taylor", "entropy", "dropout"])
def test_every_score_knows_heads(score: str) -> None:
    model, labels = Encoder().eval(), torch.tensor([0, 1])
    batches = [X] if score == "entropy" else [(X, labels)]
    scores = getattr(prune, score)(model, batches)
    smaller = prune.prune_channels(model, X, scores, amount=0.5, scope="layer", multiple=1)
    assert [m.num_heads for m in attentions(smaller).values()] == [2, 2]


def test_what_loses_no_head_stays_torchs_own() -> None:
    model = Encoder().eval()
    model.encoder.layers[1].self_attn.requires_grad_(False)
    ignore = [f"encoder.layers.{i}.self_attn" for i in (0, 1)]
    smaller = halved(model, ignore=ignore)
    assert all(type(m) is nn.MultiheadAttention for m in attentions(smaller).values())
    assert smaller.encoder.layers[0].linear1.out_features == 24
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    assert {name: p.requires_grad for name, p in smaller.named_parameters()} == trained


def test_what_was_frozen_stays_frozen() -> None:
    model = Tokens().eval()
    model.attention.in_proj_weight.requires_grad_(False)
    smaller = halved(model)
    frozen = [name for name, p in smaller.named_parameters() if not p.requires_grad]
    assert frozen == [f"attention.{x}_proj.weight" for x in "qkv"]
    smaller.train()(X).sum().backward()


def test_multiply_adds_of_a_search_are_those_of_the_model_it_makes() -> None:
    model = Encoder().eval()
    whole = count_macs(model, X[:1])
    smaller = halved(model, amount=None, macs=int(0.6 * whole), scope="global")
    assert report(smaller).macs[1] <= 0.6 * whole


def test_heads_that_read_learned_keys_stay_and_the_report_says_why() -> None:
    smaller = halved(Tokens(add_bias_kv=True).eval())
    assert smaller.attention.num_heads == HEADS
    assert any("attention" in note for note in report(smaller).notes)


def test_heads_of_a_forward_of_its_own_stay() -> None:
    class Mine(nn.MultiheadAttention):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    model = Tokens().eval()
    mine = Mine(WIDTH, HEADS, batch_first=True)
    mine.load_state_dict(model.attention.state_dict())
    model.attention = mine
    model.head = nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, 3))
    smaller = halved(model.eval())
    assert type(smaller.attention) is Mine and smaller.head[0].out_features == 8


def test_a_pruned_layer_describes_itself() -> None:
    left = halved(Tokens().eval(), ignore=["first"]).attention
    again = PlainAttention.from_scheme(left.scheme())
    again.load_state_dict(left.state_dict())
    assert torch.equal(again(X, X, X)[0], left(X, X, X)[0])
    assert again.in_proj_weight.shape == (3 * 2 * SIZE, WIDTH)
