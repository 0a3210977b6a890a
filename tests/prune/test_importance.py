"""Importances of torch-pruning against values worked out by hand, and on every kind of group."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from prune_nets import Branches
from torch import Tensor, nn

import qkernels as qk
from qkernels import models, prune
from qkernels.models.transformer import Attention, VisionTransformer
from qkernels.prune.groups import ChannelGraph
from qkernels.prune.importance import CLASSES, NEED_DATA

pytest.importorskip("torch_pruning")
IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
BATCHES = [(IMAGES[:3], torch.tensor([0, 1, 2])), (IMAGES[3:], torch.tensor([3]))]


def made(name: str, **options: Any) -> prune.Importance:
    return prune.importance(name, BATCHES if name in NEED_DATA else None, **options)


def two_layers() -> nn.Sequential:
    """y = v . relu(W x), W = [[1, 2], [3, -1]], v = [2, -1]."""
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    net[0].weight.data = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    net[2].weight.data = torch.tensor([[2.0, -1.0]])
    return net


def half_square(y: Tensor, target: Tensor) -> Tensor:
    return 0.5 * (y - target).square().mean()


# Two samples with target 0. x = (1, 2): W x = (5, 1), y = 9, dL/dv = 9 (5, 1), dL/dW = 9 v x^T.
# x = (1, 0): W x = (1, 3), y = -1, dL/dv = -(1, 3), dL/dW = -v x^T.
X, T = torch.tensor([[1.0, 2.0], [1.0, 0.0]]), torch.zeros(2, 1)
G_W = (torch.tensor([[18.0, 36.0], [-9.0, -18.0]]), torch.tensor([[-2.0, 0.0], [1.0, 0.0]]))
G_V = (torch.tensor([45.0, 9.0]), torch.tensor([-1.0, -3.0]))
W, V = torch.tensor([[1.0, 2.0], [3.0, -1.0]]), torch.tensor([2.0, -1.0])
EXPECTED = {
    "magnitude": (W.square().sum(1) + V.square()) / 2,
    "lamp": torch.tensor([9.0 / 20, 1.0]),  # (5 + 4) / 2 and (10 + 1) / 2: the least by the sum of all
    "fpgm": torch.tensor([(64.0 + 9) ** 0.5 + 3] * 2) / 2,  # of the rows (1, 4) and (9, 1), and of 4 and 1
    "taylor": ((W * (G_W[0] + G_W[1]) / 2).abs().sum(1) + (V * (G_V[0] + G_V[1]) / 2).abs()) / 2,
    "hessian": (
        (W.square() * (G_W[0] ** 2 + G_W[1] ** 2) / 2).sum(1)
        + V.square() * (G_V[0] ** 2 + G_V[1] ** 2) / 2
    ) / 2,
    "activation": torch.tensor([3.0, 2.0]),  # the means of (5, 1) and (1, 3)
}  # fmt: skip


@pytest.mark.parametrize("cut", [1, 2])
@pytest.mark.parametrize("name", EXPECTED)
def test_the_values_are_those_worked_out_by_hand(name: str, cut: int) -> None:
    """However the samples are cut into batches."""
    batches = list(zip(X.split(cut), T.split(cut), strict=True)) if name in NEED_DATA else None
    options = {} if name == "lamp" else {"normalizer": None}
    if name == "activation":
        options["group_reduction"] = "mean"
    score = prune.importance(name, batches, half_square, **options)
    graph = ChannelGraph(two_layers(), X)
    (found,) = score.scores(graph, graph.groups)
    torch.testing.assert_close(found, EXPECTED[name])
    assert all(p.grad is None for p in graph.model.parameters())
    assert not any(hasattr(m, "_importance") or m._forward_pre_hooks for m in graph.model.modules())


def test_scales_of_batch_norms_are_an_importance() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    net[1].weight.data = torch.tensor([3.0, -1.0, 4.0, 0.0])
    smaller = prune.prune_channels(net, IMAGES, "bn_scale", amount=0.5, multiple=1)
    assert smaller[1].weight.tolist() == [3.0, 4.0]
    net[1] = nn.Identity()
    with pytest.raises(ValueError, match="'bn_scale' says nothing about 0: leave it out"):
        prune.prune_channels(net, IMAGES, "bn_scale", amount=0.5)


MODELS = {
    "branches": lambda: Branches(),
    "zero-padded shortcuts": lambda: models.create("resnet8"),
    "attention": lambda: VisionTransformer(5, 3, 8, width=24, depth=1, heads=4, patch=4),
    "torch's attention": lambda: nn.Sequential(
        nn.Conv2d(3, 24, 4, 4), nn.Flatten(2), Transposed(),
        nn.TransformerEncoderLayer(24, 4, 48, batch_first=True), Mean(), nn.Linear(24, 5),
    ),
    "groups": lambda: nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=2), nn.ReLU(),
        nn.ConvTranspose2d(16, 12, 2, groups=4), nn.ReLU(), nn.Conv2d(12, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 5),
    ),
}  # fmt: skip


class Transposed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", [n for n in CLASSES if n != "bn_scale"])
def test_every_importance_prunes_every_kind_of_group(name: str, model: str) -> None:
    """`prune_channels` itself compares the answer with that of the silent channels."""
    net = MODELS[model]().eval()
    smaller = prune.prune_channels(net, IMAGES, made(name), amount=0.5, scope="layer", multiple=1)
    done = qk.report(smaller)
    assert done.macs[1] < 0.7 * done.macs[0]
    assert smaller(IMAGES).shape == net(IMAGES).shape
    assert all(p.grad is None for m in (net, smaller) for p in m.parameters())


def test_the_head_of_least_weight_goes_first() -> None:
    net = VisionTransformer(5, 3, 8, width=24, depth=1, heads=4, patch=4).eval()
    attention = next(m for m in net.modules() if isinstance(m, Attention))
    kept = [*range(0, 6), *range(12, 24)]
    for layer in (attention.query, attention.key, attention.value):
        layer.weight.data[6:12] *= 0.1
    attention.out.weight.data[:, 6:12] *= 0.1
    for name in ("magnitude", "lamp", "taylor", "hessian"):
        smaller = prune.prune_channels(net, IMAGES, made(name), amount=0.25, scope="layer", multiple=1)  # fmt: skip
        left = next(m for m in smaller.modules() if isinstance(m, Attention))
        assert torch.equal(left.value.weight, attention.value.weight[kept]), name


def test_tokens_have_importances_too() -> None:
    net = VisionTransformer(5, 3, 8, width=24, depth=1, heads=4, patch=4).eval()
    for name in ("magnitude", "hessian"):
        smaller = prune.prune_channels(
            net, IMAGES, made(name), amount=0.5, scope="layer", multiple=1, embeddings=True
        )
        assert smaller.position.shape == (1, 4, 12)


def test_options_of_the_library_are_taken_and_others_refused() -> None:
    net = two_layers()
    first = prune.importance("magnitude", p=1, group_reduction="first", normalizer=None)
    graph = ChannelGraph(net, X)
    assert first.scores(graph, graph.groups)[0].tolist() == [3.0, 4.0]
    with pytest.raises(ValueError, match=r"'magnitude' does not take \{'power': 2\}"):
        prune.importance("magnitude", power=2)
    with pytest.raises(ValueError, match="'lamp' does not take"):
        prune.importance("lamp", normalizer="mean")


def test_what_cannot_be_meant_is_said() -> None:
    with pytest.raises(ValueError, match="no importance 'hessain'; known: activation, bn_scale"):
        prune.importance("hessain")
    with pytest.raises(ValueError, match="'taylor' needs batches"):
        prune.prune_channels(two_layers(), X, "taylor", amount=0.5)
    with pytest.raises(ValueError, match="'lamp' takes no batches"):
        prune.importance("lamp", BATCHES)
    with pytest.raises(ValueError, match="no batches with labels"):
        prune.importance("hessian", [])
