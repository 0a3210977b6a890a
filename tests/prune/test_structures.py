"""Structures that channels cannot be taken out of keep them, say why, and leave the rest of the model prunable."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils import prune as masking

from qkernels import prune
from qkernels.reports import report

pytest.importorskip("torch_pruning")
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def conv(inputs: int, outputs: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


class Net(nn.Module):
    """`first`, which can always be pruned, then a body of 8 channels with something odd in it, and a head."""

    def __init__(self, body: nn.Module, channels: int = 8) -> None:
        super().__init__()
        self.first, self.second, self.body = conv(3, 16), conv(16, 8), body
        self.head = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.body(self.second(self.first(x).relu())).mean((2, 3)))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(8, 8), conv(8, 8)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 12)

    def forward(self, x: Tensor) -> Tensor:
        y = x.permute(0, 2, 3, 1)
        return linear(self.a(y).relu(), self.a.weight.T).permute(0, 3, 1, 2)


class Viewed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, 8 * 8 * 8).view(-1, 8, 8, 8)


class Shuffled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        return x.view(n, 2, 4, h, w).transpose(1, 2).reshape(n, 8, h, w)


def masked() -> nn.Module:
    layer = nn.Sequential(conv(8, 8), nn.ReLU(), conv(8, 8))
    masking.l1_unstructured(layer[0], "weight", 0.3)
    return layer


BODIES = {
    "tied weights": (Tied, 8, "share a weight"),
    "a pixel shuffle": (lambda: nn.Sequential(conv(8, 32), nn.PixelShuffle(2)), 8, "not followed"),
    "a reused transposed weight": (Transposed, 8, "not followed|does not run"),
    "a view with numbers": (Viewed, 8, "does not run|number"),
    "a channel shuffle": (Shuffled, 8, "does not run|number|coupled"),
    "torch's own pruning": (masked, 8, "is masked"),
    "a parametrized layer": (
        lambda: nn.Sequential(torch.nn.utils.parametrizations.spectral_norm(conv(8, 8)), nn.ReLU(), conv(8, 8)),
        8,
        "is a Parametrized",
    ),
    "a gate": (lambda: nn.Sequential(conv(8, 16), nn.GLU(1)), 8, "Split|not followed|does not run|GLU"),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_a_structure_that_is_not_known_keeps_its_channels_and_the_rest_is_pruned(name: str) -> None:
    make, channels, why = BODIES[name]
    torch.manual_seed(0)
    net = Net(make(), channels).eval()
    scores = prune.magnitude(prune.weights(net))
    smaller = prune.prune_channels(net, X, scores, amount=0.5, scope="layer", multiple=1)
    assert smaller.first.out_channels == 8  # pruned, whatever comes behind it
    assert smaller(X).shape == net(X).shape
    done = report(smaller)
    assert done.macs[1] < done.macs[0]
    assert any(re.search(why, note) for note in done.notes), done.notes


class Answering(nn.Module):
    def __init__(self, form: Any) -> None:
        super().__init__()
        self.first, self.second, self.head, self.form = (
            conv(3, 16),
            conv(16, 8),
            nn.Linear(8, 5),
            form,
        )

    def forward(self, x: Tensor) -> Any:
        y = self.second(self.first(x).relu())
        return self.form(self.head(y.mean((2, 3))), y)


@pytest.mark.parametrize(
    "form",
    [
        lambda a, b: (a, b),
        lambda a, b: {"logits": a, "aux": [b]},
        lambda a, b: SimpleNamespace(logits=a, features=b),
    ],
    ids=["tuple", "dict", "object"],
)
def test_every_tensor_of_an_answer_keeps_its_shape(form: Any) -> None:
    net = Answering(form).eval()
    scores = prune.magnitude(prune.weights(net))
    smaller = prune.prune_channels(net, X, scores, amount=0.5, scope="layer", multiple=1)
    assert (smaller.first.out_channels, smaller.second.out_channels) == (8, 8)
    dead = prune.remove_dead_channels(net, X)
    assert dead.first.out_channels == 16
