"""Heads, groups of convolutions and of norms leave whole, and the rest answers as with them silent."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from prune_nets import small_deit
from torch import Tensor, nn

import qkernels as qk
from qkernels import prune
from qkernels.measuring.costs import count_macs
from qkernels.models import changes, narrow_, sizes
from qkernels.models.transformer import Attention, VisionTransformer
from qkernels.prune.cells import components
from qkernels.reports import report

pytest.importorskip("torch_pruning")
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def conv(inputs: int, outputs: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def net(*middle: nn.Module, channels: int = 16, out: int = 16) -> nn.Sequential:
    """A convolution, what is looked at, and two convolutions behind it."""
    torch.manual_seed(0)
    made = nn.Sequential(
        conv(3, channels), *middle, nn.ReLU(), conv(out, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )  # fmt: skip
    for module in made.modules():  # as trained ones: a wrong index shows
        if isinstance(module, nn.GroupNorm | nn.BatchNorm2d) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return made.eval()


def halved(model: nn.Module, x: Tensor = X, **how: Any) -> nn.Module:
    scores = prune.magnitude(prune.weights(model))
    settings = {"amount": 0.5, "scope": "layer", "multiple": 1, **how}
    return prune.prune_channels(model, x, scores, **settings)


BODIES = {
    "a group norm": lambda: net(nn.GroupNorm(4, 16)),
    "a group norm without weights": lambda: net(nn.GroupNorm(4, 16, affine=False)),
    "a grouped convolution": lambda: net(nn.ReLU(), conv(16, 16, groups=4)),
    "a grouped convolution that widens": lambda: net(nn.ReLU(), conv(16, 32, groups=4), out=32),
    "two filters for each channel": lambda: net(conv(16, 32, groups=16), out=32),
    "groups behind groups of another size": lambda: net(
        conv(16, 16, groups=4), nn.GroupNorm(8, 16), nn.ReLU(), conv(16, 16, groups=2)
    ),
    "a transposed convolution": lambda: net(nn.ReLU(), nn.ConvTranspose2d(16, 12, 2, 2), out=12),
    "a grouped transposed convolution": lambda: net(
        nn.ReLU(), nn.ConvTranspose2d(16, 12, 2, 2, groups=4), out=12
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_layers_lose_whole_groups_and_the_others_answer_as_before(name: str) -> None:
    """`prune_channels` itself compares the answer with that of the silent channels, and refuses another."""
    model = BODIES[name]()
    before = count_macs(model, (3, 8, 8))
    smaller = halved(model)
    assert smaller[0].out_channels == 8
    assert smaller(X).shape == (2, 5) and not report(smaller).notes
    assert count_macs(smaller, (3, 8, 8)) < 0.6 * before
    again = narrow_(BODIES[name](), changes(sizes(model), smaller)).eval()
    again.load_state_dict(smaller.state_dict())
    assert torch.equal(again(X), smaller(X))


@pytest.mark.parametrize(
    "name", ["a group norm", "a grouped convolution", "a transposed convolution"]
)
def test_what_is_left_is_quantized_and_compiled(name: str) -> None:
    smaller = halved(BODIES[name]())
    int8 = qk.quantize(smaller, "static", [X])
    assert (int8(X) - smaller(X)).abs().max() < 0.1 * smaller(X).abs().max()
    chained = qk.compile(int8, X, exact=True)
    assert torch.equal(chained(X), int8(X))


def test_one_filter_for_several_channels_keeps_them_and_says_why() -> None:
    smaller = halved(net(conv(16, 8, groups=8), out=8))
    assert smaller[0].out_channels == 16 and smaller[3].out_channels == 4
    assert any("0 keeps its channels" in note for note in report(smaller).notes)


def test_a_norm_over_all_channels_in_one_group_keeps_them() -> None:
    smaller = halved(net(nn.GroupNorm(1, 16)))
    assert smaller[0].out_channels == 16 and smaller[3].out_channels == 4


def test_a_layer_norm_takes_its_statistics_of_the_channels_left() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.norm, self.b = nn.Linear(6, 16), nn.LayerNorm(16), nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.norm(self.a(x)).relu())

    x, model = torch.randn(3, 6), Normed().eval()
    smaller = halved(model, x)
    assert smaller.norm.normalized_shape == (8,) and smaller(x).shape == (3, 5)
    again = narrow_(Normed(), changes(sizes(model), smaller)).eval()
    again.load_state_dict(smaller.state_dict())
    assert torch.equal(again(x), smaller(x))


class Fused(nn.Module):
    """Query, key and value of one layer, as [3, heads, size] or [heads, 3, size]."""

    def __init__(self, width: int, heads: int, heads_first: bool) -> None:
        super().__init__()
        self.num_heads, self.attn_dim, self.heads_first = heads, width, heads_first
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        made = self.qkv(x)
        if self.heads_first:
            q, k, v = made.view(n, t, self.num_heads, 3, -1).permute(3, 0, 2, 1, 4)
        else:
            q, k, v = made.view(n, t, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(n, t, self.attn_dim))


class Reader(nn.Module):
    def __init__(self, attention: nn.Module, width: int) -> None:
        super().__init__()
        self.attention, self.head = attention, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.attention(x)).mean(1)


ATTENTIONS = {
    "separate": lambda: Attention(24, 4),
    "fused": lambda: Fused(24, 4, False),
    "fused, heads first": lambda: Fused(24, 4, True),
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_whole_heads_go_and_the_others_see_what_they_saw(name: str) -> None:
    torch.manual_seed(0)
    model, x = Reader(ATTENTIONS[name](), 24).eval(), torch.randn(2, 5, 24)
    smaller = halved(model, x)
    last = [m for m in model.attention.children() if isinstance(m, nn.Linear)][-1]
    left = [m for m in smaller.attention.children() if isinstance(m, nn.Linear)][-1]
    assert left.in_features == 12
    # Columns of the heads that stayed are as they were; the others silent in the first model give the same answer.
    kept = [i for i in range(24) if (last.weight[:, i, None] == left.weight).all(0).any()]
    assert len(kept) == 12 and all(i // 6 * 6 in kept for i in kept)
    silent = copy.deepcopy(model)
    with torch.no_grad():
        weight = [m for m in silent.attention.children() if isinstance(m, nn.Linear)][-1].weight
        weight[:, [i for i in range(24) if i not in kept]] = 0
    torch.testing.assert_close(smaller(x), silent(x))
    torch.manual_seed(1)
    again = narrow_(Reader(ATTENTIONS[name](), 24), changes(sizes(model), smaller)).eval()
    again.load_state_dict(smaller.state_dict())
    assert torch.equal(again(x), smaller(x))


def test_heads_that_the_forward_has_as_a_number_stay() -> None:
    class Fixed(Fused):
        def forward(self, x: Tensor) -> Tensor:
            n, t, _ = x.shape
            q, k, v = self.qkv(x).view(n, t, 3, 4, 6).permute(2, 0, 3, 1, 4)
            y = nn.functional.scaled_dot_product_attention(q, k, v)
            return self.proj(y.transpose(1, 2).reshape(n, t, 24))

    torch.manual_seed(0)
    model = Reader(
        nn.Sequential(Fixed(24, 4, False), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24)), 24
    )
    smaller = halved(model.eval(), torch.randn(2, 5, 24))
    assert smaller.attention[0].qkv.out_features == 72 and smaller.attention[1].out_features == 12


def test_attention_that_does_not_say_its_heads_keeps_them_and_says_why() -> None:
    """Its query and key would lose channels of every head, and the others answer otherwise: never silently."""

    class Silent(Attention):
        def __init__(self) -> None:
            super().__init__(24, 4)
            del self.heads

        def _split(self, x: Tensor) -> Tensor:
            return x.unflatten(2, (4, -1)).transpose(1, 2)

    torch.manual_seed(0)
    model = Reader(
        nn.Sequential(Silent(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24)), 24
    ).eval()
    smaller = halved(model, torch.randn(2, 5, 24))
    assert smaller.attention[0].query.out_features == 24
    assert any(
        "answers otherwise than with those channels silent" in n for n in report(smaller).notes
    )


def test_the_panel_counts_channels_and_not_heads() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(10, 3, 8, width=64, depth=1, heads=4, patch=4).eval()
    smaller = halved(model, X, multiple=16)
    assert [m.heads for m in smaller.modules() if isinstance(m, Attention)] == [
        2
    ]  # of 16 channels each


def test_multiply_adds_of_a_search_are_those_of_the_model_it_makes() -> None:
    for name in ("a grouped convolution", "a transposed convolution", "a group norm"):
        model = BODIES[name]()
        whole = count_macs(model, (3, 8, 8))
        smaller = halved(model, amount=None, macs=int(0.6 * whole), scope="global")
        assert report(smaller).macs[1] == count_macs(smaller, (3, 8, 8)) <= 0.6 * whole


def test_components_are_what_hangs_together() -> None:
    pairs = [torch.tensor([1, 2]), torch.tensor([2, 5]), torch.tensor([3, 4])]
    assert components(pairs, 7).tolist() == [0, 1, 1, 3, 3, 1, 6]


def test_a_vision_transformer_of_timm_loses_heads_and_hidden_units_and_compiles() -> None:
    model, x = small_deit()
    smaller = halved(model, x)
    block = smaller.blocks[0]
    assert (block.attn.num_heads, block.attn.qkv.out_features, block.mlp.fc1.out_features) == (
        2,
        96,
        96,
    )
    int8 = qk.quantize(smaller, "static", [x])
    chained = qk.compile(int8, x)
    assert chained.program is not None and chained(x).shape == (2, 5)
