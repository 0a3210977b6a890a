"""The width of a transformer's tokens: tables, positions, class tokens and all that adds to them or reads them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from prune_nets import small_deit
from torch import Tensor, nn
from torch.nn.functional import layer_norm

import qkernels as qk
from qkernels import prune
from qkernels.measuring.costs import count_macs
from qkernels.models import changes, narrow_, sizes
from qkernels.models.transformer import VisionTransformer
from qkernels.reports import report

pytest.importorskip("torch_pruning")
WIDTH = 24
GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randn(2, 3, 8, 8, generator=GENERATOR)
WORDS = torch.randint(20, (2, 6), generator=GENERATOR)


def encoder(**options: Any) -> nn.Module:
    settings = {"dim_feedforward": 48, "batch_first": True, "dropout": 0.0} | options
    layer = nn.TransformerEncoderLayer(WIDTH, 4, **settings)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


class Classifying(nn.Module):
    """Patches behind a class token, positions added to both; [N, 3, 8, 8] -> [N, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_dim = WIDTH
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.position = nn.Parameter(torch.randn(1, 5, WIDTH))
        self.body, self.norm = encoder(norm_first=True), nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        n = len(x)
        y = self.patches(x).reshape(n, self.hidden_dim, -1).permute(0, 2, 1)
        y = torch.cat([self.token.expand(n, -1, -1), y], 1) + self.position
        return self.head(self.norm(self.body(y))[:, 0])


class Averaging(Classifying):
    """The mean of all tokens but the first one."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2)
        y = torch.cat([self.token.expand(len(x), -1, -1), y], 1) + self.position
        return self.head(self.norm(self.body(y))[:, 1:].mean(1))


class Reading(nn.Module):
    """Words and positions from tables; int64 [N, T] -> [N, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(20, WIDTH), nn.Embedding(8, WIDTH)
        self.norm, self.body, self.head = nn.LayerNorm(WIDTH), encoder(), nn.Linear(WIDTH, 5)

    def forward(self, ids: Tensor) -> Tensor:
        y = self.words(ids) + self.positions(torch.arange(ids.shape[1]))
        return self.head(self.body(self.norm(y)).mean(1))


def vit() -> nn.Module:
    model = VisionTransformer(5, 3, 8, width=WIDTH, depth=2, heads=4, patch=4)
    nn.init.normal_(model.position)
    return model


MODELS = {
    "positions": (vit, IMAGES, "position"),
    "a class token": (Classifying, IMAGES, "position"),
    "the tokens behind a class token": (Averaging, IMAGES, "position"),
    "tables": (Reading, WORDS, "words"),
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[name][0]().eval()
    for module in model.modules():  # as trained ones: a wrong index shows
        if isinstance(module, nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model


def narrowed(model: nn.Module, x: Tensor, **how: Any) -> nn.Module:
    scores = prune.magnitude(prune.weights(model))
    settings = {"amount": 0.5, "scope": "layer", "multiple": 1, "embeddings": True} | how
    return prune.prune_channels(model, x, scores, **settings)


def others(model: nn.Module) -> list[str]:
    """What reads tokens into something else than tokens."""
    heads = [
        f"{n}.q_proj" for n, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)
    ]
    ends = ("linear1", "fc1", "query")
    return heads + [n for n, _ in model.named_modules() if n.endswith(ends)]


def values(model: nn.Module, name: str) -> Tensor:
    """The rows of an embedding, [entries, width]."""
    part = model
    for key in name.split("."):
        part = getattr(part, key)
    found = part.weight if isinstance(part, nn.Embedding) else part
    return found.detach().reshape(-1, found.shape[-1])


@pytest.mark.parametrize("name", MODELS)
def test_narrower_tokens_are_those_with_the_other_channels_silent(name: str) -> None:
    """Nothing writes the others, and norms take their statistics of those left."""
    model, (_, x, embedding) = made(name), MODELS[name]
    smaller = narrowed(model, x, ignore=others(model))
    before, after = values(model, embedding), values(smaller, embedding)
    assert after.shape[1] == WIDTH // 2
    kept = torch.tensor([i for i in range(WIDTH) if (before[:, i, None] == after).all(0).any()])
    assert len(kept) == WIDTH // 2
    gone = torch.tensor([i for i in range(WIDTH) if i not in kept])

    def norm_of_those_left(norm: nn.LayerNorm, args: Any, y: Tensor) -> Tensor:
        weight, bias = norm.weight[kept], norm.bias[kept]
        left = layer_norm(args[0][..., kept], (len(kept),), weight, bias, norm.eps)
        return torch.zeros_like(y).index_copy(-1, kept, left)

    silent = copy.deepcopy(model)
    for module in silent.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_hook(norm_of_those_left)
        elif isinstance(module, nn.Embedding):
            module.weight.data[:, gone] = 0
    for key, parameter in silent.named_parameters():
        if key in ("token", "position"):
            parameter.data[..., gone] = 0
        elif key.rsplit(".", 2)[-2] in ("patches", "out", "out_proj", "fc2", "linear2"):
            parameter.data[gone] = 0
    torch.testing.assert_close(smaller(x), silent(x), rtol=1e-4, atol=1e-5)
    assert count_macs(smaller, x[:1]) < 0.6 * count_macs(model, x[:1])


@pytest.mark.parametrize("name", MODELS)
def test_heads_and_hidden_units_go_with_it_and_the_model_is_made_again(
    name: str, tmp_path: Path
) -> None:
    model, (_, x, embedding) = made(name), MODELS[name]
    smaller = narrowed(model, x)
    assert values(smaller, embedding).shape[1] == WIDTH // 2
    assert count_macs(smaller, x[:1]) < 0.35 * count_macs(model, x[:1])
    counts = report(smaller).channels
    assert counts == changes(sizes(model), smaller)
    again = narrow_(made(name), counts).eval()
    again.load_state_dict(smaller.state_dict())
    assert torch.equal(again(x), smaller(x))
    int8 = qk.quantize(smaller, "static", [x])
    assert (int8(x) - smaller(x)).norm() < 0.15 * smaller(x).norm()
    for kind, saved in (("float", smaller), ("int8", int8)):
        qk.save(saved, tmp_path / kind)
        loaded = qk.load(tmp_path / kind, lambda: narrow_(made(name), counts))
        assert torch.equal(loaded(x), saved(x))


@pytest.mark.parametrize("name", MODELS)
def test_it_compiles_as_the_whole_model_does(name: str) -> None:
    model, (_, x, _) = made(name), MODELS[name]
    whole, int8 = (qk.quantize(m, "static", [x]) for m in (model, narrowed(model, x)))
    chained = qk.compile(int8, x)
    assert (chained.program is None) == (qk.compile(whole, x).program is None)
    assert (chained(x) - int8(x)).norm() < 0.1 * int8(x).norm()


@pytest.mark.parametrize("name", MODELS)
def test_tokens_stay_as_wide_unless_asked_and_the_report_says_how(name: str) -> None:
    model, (_, x, embedding) = made(name), MODELS[name]
    smaller = narrowed(model, x, embeddings=False)
    assert values(smaller, embedding).shape[1] == WIDTH
    assert any("embeddings=True narrows" in note for note in report(smaller).notes)


def test_a_module_that_says_its_width_follows() -> None:
    smaller = narrowed(made("a class token"), IMAGES)
    assert smaller.hidden_dim == smaller.patches.out_channels == WIDTH // 2


def test_whole_panels_and_a_search_know_of_tokens() -> None:
    model = made("positions")
    whole = count_macs(model, IMAGES[:1])
    smaller = narrowed(model, IMAGES, multiple=16)
    assert smaller.position.shape == (1, 4, 16)
    smaller = narrowed(model, IMAGES, amount=None, macs=int(0.6 * whole), scope="global")
    assert report(smaller).macs[1] <= 0.6 * whole


def test_a_table_can_be_left_out() -> None:
    model = made("tables")
    smaller = narrowed(model, WORDS, ignore=["words"])
    assert (
        smaller.words.embedding_dim == WIDTH and smaller.body.layers[0].linear1.out_features == 24
    )


def test_a_table_tied_to_the_layer_at_the_end_keeps_its_width_and_says_why() -> None:
    model = Reading()
    model.head = nn.Linear(WIDTH, 20, bias=False)
    model.head.weight = model.words.weight
    smaller = narrowed(model.eval(), WORDS)
    assert smaller.words.embedding_dim == WIDTH
    assert any("share a weight" in note for note in report(smaller).notes)


def test_a_vision_transformer_of_torchvision_gets_narrower() -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(16, 8, 2, 4, WIDTH, 48, num_classes=5).eval()
    nn.init.normal_(model.heads.head.weight)
    x = torch.randn(2, 3, 16, 16)
    smaller = narrowed(model, x)
    assert smaller.hidden_dim == smaller.class_token.shape[-1] == WIDTH // 2
    assert smaller.encoder.layers[0].self_attention.num_heads == 2
    assert smaller(x).shape == (2, 5)


def test_a_vision_transformer_of_timm_gets_narrower() -> None:
    model, x = small_deit()
    smaller = narrowed(model, x)
    assert smaller.cls_token.shape[-1] == smaller.blocks[0].norm1.normalized_shape[0] == 24
    assert smaller(x).shape == (2, 5)


def test_a_vision_transformer_of_transformers_gets_narrower() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        image_size=16, patch_size=8, num_labels=5,
    )  # fmt: skip
    torch.manual_seed(0)
    model, x = transformers.ViTForImageClassification(config).eval(), torch.randn(2, 3, 16, 16)
    smaller = narrowed(model, x)
    assert smaller.vit.embeddings.cls_token.shape[-1] == WIDTH // 2
    assert smaller(x).logits.shape == (2, 5)
