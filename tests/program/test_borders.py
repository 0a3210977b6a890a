"""Int8 images that lie in the arena with the padding of their readers around them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from program_bytes import seal, tables, tables_end
from torch import Tensor, nn

import qkernels as qk
from qkernels.program import Program


def compiled(net: nn.Module, *size: int, seed: int = 0) -> tuple[nn.Module, Any, Tensor]:
    torch.manual_seed(seed)
    for p in net.parameters():
        nn.init.normal_(p, std=0.3)
    x = torch.randn(*size)
    model = qk.quantize(net.eval(), {"activation": "static"}, lambda m: m(x))
    return model, qk.compile(model, x, exact=True), x


def borders(program: Program) -> dict[str, int]:
    """The border of what each step writes, by the step's name."""
    _, values, steps = tables(program.data)
    return {
        program.data[s["name"] : s["name"] + s["name_bytes"]].tobytes().decode(): int(values[s["y"]]["border"])
        for s in steps
    }  # fmt: skip


class Readers(nn.Module):
    """One value that several convolutions read."""

    def __init__(self, channels: int, readers: list[nn.Module]) -> None:
        super().__init__()
        self.writer, self.readers = nn.Conv2d(3, channels, 1), nn.ModuleList(readers)

    def forward(self, x: Tensor) -> list[Tensor]:
        y = torch.relu(self.writer(x))
        return [reader(y) for reader in self.readers]


@st.composite
def readers(draw: st.DrawFn, channels: int) -> nn.Conv2d:
    kernel, dilation = draw(st.integers(1, 5)), draw(st.integers(1, 2))
    groups = draw(st.sampled_from([1, channels]))
    pads = st.integers(0, 3)
    return nn.Conv2d(
        channels, draw(st.sampled_from([groups, 2 * groups, 16 * groups])), kernel, draw(st.integers(1, 3)),
        padding=(draw(pads), draw(pads)), dilation=dilation, groups=groups,
    )  # fmt: skip


@st.composite
def nets(draw: st.DrawFn) -> tuple[Readers, list[int]]:
    channels = draw(st.sampled_from([1, 3, 16, 40]))
    some = draw(st.lists(readers(channels), min_size=2, max_size=3))
    size = [draw(st.integers(1, 3)), 3, draw(st.integers(9, 17)), draw(st.integers(9, 17))]
    return Readers(channels, some), size


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(nets(), st.integers(0, 100))
def test_readers_of_any_padding_share_one_border(
    drawn: tuple[Readers, list[int]], seed: int
) -> None:
    net, size = drawn
    model, chained, x = compiled(net, *size, seed=seed)
    for got, want in zip(chained(x), model(x), strict=True):
        assert torch.equal(got, want)
    most = max(max(reader.padding) for reader in net.readers)
    assert borders(chained.program.program)["writer"] == most


def test_depthwise_layers_of_a_mobile_block_write_and_read_borders() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 24, 3, 2, 1), nn.ReLU6(), nn.Conv2d(24, 24, 3, 1, 1, groups=24), nn.ReLU6(),
        nn.Conv2d(24, 24, 5, 2, 4, dilation=2, groups=24), nn.ReLU6(), nn.Conv2d(24, 40, 1), nn.ReLU6(),
        nn.Conv2d(40, 40, (1, 7), 1, "same", groups=40), nn.ReLU6(), nn.Conv2d(40, 8, 3, padding=1),
    )  # fmt: skip
    model, chained, _ = compiled(net, 2, 3, 33, 27)
    assert list(borders(chained.program.program).values())[:5] == [1, 4, 0, 3, 1]
    for n, h, w in [(1, 33, 27), (3, 8, 8), (5, 40, 17)]:
        x = torch.randn(n, 3, h, w)
        assert torch.equal(chained(x), model(x))


class Other(nn.Module):
    """A value that a padded convolution reads, and something that knows no border."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.writer, self.reader = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.mirrored = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.pool, self.last = nn.MaxPool2d(3, 1, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.relu(self.writer(x))
        z = self.reader(y)
        other = {
            "pool": lambda: self.reader(self.pool(y)),
            "mirror": lambda: self.mirrored(y),
            "residual": lambda: self.reader(z) + y,
            "join": lambda: self.last(torch.cat([y, y], 1)),
        }
        return z, other[self.kind]()


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("kind", ["pool", "mirror", "residual", "join"])
def test_what_another_step_reads_stays_plain(kind: str, exact: bool) -> None:
    net = Other(kind)
    model, _, x = compiled(net, 2, 3, 9, 9)
    chained = qk.compile(model, x, exact=exact)
    for got, want in zip(chained(x), model(x), strict=True):
        assert torch.equal(got, want) or not exact
    assert borders(chained.program.program)["writer"] == 0


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_batches_with_borders_are_cut_without_changing_a_bit(threads: int, batch: int) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, 2, 1, groups=64), nn.ReLU(),
        nn.Conv2d(64, 96, 1), nn.ReLU(), nn.Conv2d(96, 96, 3, 1, 1, groups=96), nn.ReLU(),
        nn.Conv2d(96, 16, 3, padding=1),
    )  # fmt: skip
    model, chained, _ = compiled(net, 1, 3, 150, 150)  # 64 x 152 x 152 are 1.5 MB
    x = torch.randn(batch, 3, 150, 150)
    chained.program.program.threads = threads
    assert np.array_equal(chained.program.program(x.numpy()), model(x).numpy())


def bordered_program() -> tuple[Program, Tensor, Tensor]:
    net = nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU(),
        nn.Conv2d(16, 8, 3, padding=1), nn.Flatten(), nn.Linear(512, 4),
    )  # fmt: skip
    model, chained, x = compiled(net, 2, 3, 8, 8)
    return chained.program.program, x, model(x)


@pytest.mark.parametrize(
    ("step", "value", "sentence"),
    [
        (0, -1, "a border that none may have"),
        (0, 256, "a border that none may have"),
        (2, 1, "no convolution, but a value of it has a border"),
        (3, 1, "a border that none may have"),  # rows
        (4, 1, "a border that none may have"),  # the caller's
    ],
)
def test_a_border_that_none_may_have_is_refused(step: int, value: int, sentence: str) -> None:
    program, _, _ = bordered_program()
    data = program.data.copy()
    _, values, steps = tables(data)
    values[int(steps[step]["y"])]["border"] = value
    with pytest.raises(ValueError, match=sentence):
        Program(data)


def test_any_border_that_covers_the_padding_gives_the_same_bits() -> None:
    program, x, expected = bordered_program()
    for border in range(4):
        data = program.data.copy()
        _, values, _ = tables(data)
        values["border"][values["border"] > 0] = border
        seal(data)
        assert np.array_equal(Program(data)(x.numpy()), expected.numpy())


def test_forged_borders_are_refused_or_run_within_their_memory() -> None:
    program, x, _ = bordered_program()
    end = tables_end(program.data)
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(1000):
        data = program.data.copy()
        at = int(random.integers(64, end)) // 4 * 4
        value = random.choice([0, 1, 2, 5, 200, 255, 2**16, 2**31 - 1, int(random.integers(2**32))])
        data[at : at + 4] = np.frombuffer(np.uint32(value).tobytes(), np.uint8)
        seal(data)
        try:
            Program(data)(x.numpy())
        except (ValueError, MemoryError):
            refused += 1
    assert refused > 300
