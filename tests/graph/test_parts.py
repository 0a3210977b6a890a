"""Models that torch.export cannot follow: their largest parts are compiled, Python goes on calling them."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qkernels as qk
from qkernels.graph.compiled import CompiledGraph
from qkernels.graph.parts import CompiledParts


def trunk(width: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU())


class Branching(nn.Module):
    """Takes one of two heads by the values of what the trunk answers."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = trunk()
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)) for _ in "ab"
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.trunk(x).mean((2, 3))
        return self.heads[int(h.sum() < 0)](h)


class Twice(Branching):
    """Runs its trunk for two images of other sizes."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.trunk(x).mean((2, 3)) + self.trunk(x[..., 3:]).mean((2, 3))
        return self.heads[int(h.sum() < 0)](h)


class Peeking(Branching):
    """Reads the weight of a layer of its trunk outside of it."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.trunk(x * self.trunk[0].weight.abs().amax()).mean((2, 3))
        return self.heads[int(h.sum() < 0)](h)


class Cache:
    def __init__(self) -> None:
        self.kept: list[Tensor] = []


class Keeping(nn.Module):
    """A part that writes what it saw into an object that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = trunk()

    def forward(self, x: Tensor, cache: Cache) -> Tensor:
        cache.kept.append(x)
        return self.trunk(x)


class WithCache(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = Keeping()

    def forward(self, x: Tensor) -> Tensor:
        cache = Cache()
        y = self.part(x, cache)
        return y * len(cache.kept) if y.sum() > 0 else y


def int8_of(kind: type[nn.Module], **config: Any) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 16, 16)
    return qk.quantize(kind().eval(), {"activation": "static"} | config, [x]), x


def parts_of(model: nn.Module) -> set[str]:
    return {
        n.removeprefix("steps.") for n, m in model.named_modules() if isinstance(m, CompiledGraph)
    }


@pytest.mark.parametrize("exact", [True, False])
def test_parts_of_a_model_that_branches_on_values_are_compiled(exact: bool) -> None:
    int8, x = int8_of(Branching)
    compiled = qk.compile(int8, x, exact=exact)
    assert isinstance(compiled, CompiledParts)
    taken = parts_of(compiled)
    assert "trunk" in taken and len(taken) == 2  # and the head that the example takes
    for batch in (x, torch.randn(5, 3, 20, 20)):
        expected, got = int8(batch), compiled(batch)
        assert (
            torch.equal(expected, got) if exact else (expected - got).norm() < 0.1 * expected.norm()
        )
    assert not parts_of(int8)  # the model itself stays as it was


def test_the_report_says_why_and_which_parts() -> None:
    int8, x = int8_of(Branching, activation="dynamic")
    report = qk.compile(int8, x).report
    assert re.search(
        r"Branching cannot be captured \(.+\); compiled are its parts trunk, heads\.\d",
        report.uncaptured,
    )
    assert report.uncaptured in repr(report)
    assert {row.name for row in report.layers} == {
        "trunk.0", "trunk.2", "heads.0.0", "heads.0.2", "heads.1.0", "heads.1.2",
    }  # fmt: skip
    assert sum("no part" in row.why for row in report.layers) == 2


def test_a_part_called_with_two_sizes_is_left_as_it_is() -> None:
    int8, x = int8_of(Twice)
    compiled = qk.compile(int8, x, exact=True)
    assert "trunk" not in parts_of(compiled)
    assert torch.equal(compiled(x), int8(x))


def test_a_part_whose_weight_others_read_is_left_as_it_is() -> None:
    int8, x = int8_of(Peeking)
    compiled = qk.compile(int8, x, exact=True)
    assert "trunk" not in parts_of(compiled)
    assert torch.equal(compiled(x), int8(x))


def test_a_part_that_is_given_a_cache_is_left_as_it_is_and_goes_on_filling_it() -> None:
    int8, x = int8_of(WithCache)
    compiled = qk.compile(int8, x, exact=True)
    assert parts_of(compiled) == {"part.trunk"}
    for _ in range(2):
        assert torch.equal(compiled(x), int8(x))


def test_a_compiled_part_in_a_model_has_no_file_and_says_why(tmp_path: Path) -> None:
    int8, x = int8_of(Branching)
    compiled = qk.compile(int8, x)
    with pytest.raises(ValueError, match="no program by itself; Branching cannot be captured"):
        compiled.save(tmp_path / "m.qkp")
    with pytest.raises(ValueError, match=r"Branching cannot be captured .* profile one of them"):
        compiled.profile(x)
    with pytest.raises(ValueError, match="max_batch is 8, but only a model that is captured"):
        qk.compile(int8, x, max_batch=8)


def test_where_no_part_can_be_captured_the_sentence_has_torchs_reason() -> None:
    class Only(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) if x.sum() > 0 else x

    x = torch.ones(2, 4)
    int8 = qk.quantize(Only().eval(), "static", [x])
    with pytest.raises(ValueError, match=r"Only cannot be captured, so it stays un-chained: .+"):
        qk.compile(int8, x)
