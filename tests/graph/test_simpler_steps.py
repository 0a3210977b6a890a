"""Steps that are something simpler: written over a part, repeated for the batch, along a line."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qkernels as qk
from qkernels.graph.program import TorchProgram


class WritesOverChannels(nn.Module):
    """A residual added in place to the first channels, as GhostNet adds it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.stem, self.body, self.head = (
            nn.Conv2d(3, 8, 1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(8, 4, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = torch.cat([self.body(x)], 1)
        y[:, : self.channels] += x[:, : self.channels]
        return self.head(y)


class SinesOfTheMask(nn.Module):
    """Positions of a mask of the input's sizes, batch included, through a layer of their own, as EdgeNeXt has them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.project, self.head = (
            nn.Conv2d(3, 8, 1),
            nn.Conv2d(2, 8, 1),
            nn.Conv2d(8, 4, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        seen = ~torch.zeros(x.shape[0], x.shape[2], x.shape[3], dtype=torch.bool)
        rows, columns = seen.cumsum(1, dtype=torch.float32), seen.cumsum(2, dtype=torch.float32)
        return self.head(x + self.project(torch.stack([rows.sin(), columns.cos()], 1)))


class Normalized(nn.Module):
    """Rows of one length, repeated as the values that they divide, as F.normalize does it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.normalize(self.stem(x), dim=-1))


class NormedLine(nn.Module):
    """A group norm of a line, as wav2vec 2.0 has it in front of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv1d(2, 8, 3), nn.GroupNorm(4, 8), nn.Conv1d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stem(x)))


class Padded(nn.Module):
    """Tokens beside those before and after them, as MobileBERT joins them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        after, before = F.pad(x[:, 1:], [0, 0, 0, 1]), F.pad(x[:, :-1], [0, 0, 1, 0])
        return self.head(torch.cat([after, x, before], 2))


class LearnedQueries(nn.Module):
    """Queries of the model that attend to the input, as DETR's and SigLIP's do."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, 3, 16))
        self.stem, self.q, self.kv = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 32)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        queries = self.queries.expand(n, -1, -1)
        q = self.q(queries).reshape(n, 3, 2, 8).transpose(1, 2)
        k, v = self.kv(self.stem(x)).reshape(n, t, 2, 2, 8).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, 3, 16)
        return self.head(y + queries)


class KeysBesideValues(nn.Module):
    """Keys and values of one layer, taken apart behind it, whose queries' layer reads the same value (PVT)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.q, self.kv = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 32)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, t, _ = x.shape
        q = self.q(x).reshape(n, t, 2, 8).transpose(1, 2)
        k, v = self.kv(x).reshape(n, t, 2, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.head(y.transpose(1, 2).reshape(n, t, 16))


class ReadBesideEach(nn.Module):
    """The class token beside every other one, as DPT reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 16), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        first, rest = x[:, 0], x[:, 1:]
        return self.head(torch.cat([rest, first.unsqueeze(1).expand_as(rest)], -1))


CASES = {
    "over all channels": (lambda: WritesOverChannels(8), (3, 9, 9)),
    "over the first channels": (lambda: WritesOverChannels(4), (3, 9, 9)),
    "positions of a mask": (SinesOfTheMask, (3, 9, 9)),
    "rows of one length": (Normalized, (5, 6)),
    "a normed line": (NormedLine, (2, 30)),
    "padded tokens": (Padded, (5, 6)),
    "learned queries": (LearnedQueries, (5, 6)),
    "a token beside each": (ReadBesideEach, (5, 6)),
    "keys beside values": (KeysBesideValues, (5, 6)),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_something_simpler_is_one_program_of_any_batch(name: str) -> None:
    make, size = CASES[name]
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(2, *size)
    int8 = qk.quantize(model, "static", [x])
    chained = qk.compile(int8, x)
    assert chained.report.unfused == []
    assert chained.program is not None
    for batch in (1, 2, 5):
        x = torch.randn(batch, *size)
        wanted = int8(x)
        assert (chained(x) - wanted).norm() < 0.1 * wanted.norm()


def test_positions_that_differ_within_the_batch_are_no_constant() -> None:
    class Numbered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x) + torch.arange(x.shape[0], dtype=torch.float32)[:, None]

    torch.manual_seed(0)
    model, x = Numbered().eval(), torch.randn(3, 6)
    int8 = qk.quantize(model, "static", [x])
    chained = qk.compile(int8, x)
    for batch in (1, 4):
        x = torch.randn(batch, 6)
        assert torch.allclose(chained(x), int8(x), atol=1e-5)


class TwoTowers(nn.Module):
    """Rows of one batch against rows of another, as CLIP compares texts with images."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8))
        self.right = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 8))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return F.normalize(self.left(a), dim=-1) @ F.normalize(self.right(b), dim=-1).t()


def test_each_of_two_batches_has_a_program_of_its_own() -> None:
    torch.manual_seed(0)
    model, pair = TwoTowers().eval(), (torch.randn(3, 6), torch.randn(4, 5))
    int8 = qk.quantize(model, "static", [pair])
    chained = qk.compile(int8, pair)
    assert len(chained.report.unfused) <= 2, chained.report.unfused
    assert sum(isinstance(part, TorchProgram) for part in chained.modules()) == 2
    for sizes in ((3, 4), (1, 5), (6, 2)):
        pair = torch.randn(sizes[0], 6), torch.randn(sizes[1], 5)
        wanted = int8(*pair)
        assert (chained(*pair) - wanted).norm() < 0.1 * wanted.norm()
