"""Names of blocks in include, exclude and overrides: a container's name or type means all below it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qkernels as qk


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm, self.fc2 = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(self.norm(self.fc1(x)).relu())


class Head(nn.Sequential):
    pass


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.branches = nn.ModuleDict({"a": Block(), "b": nn.Sequential(nn.Linear(8, 8))})
        self.head = Head(nn.Dropout(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.branches["a"](x) + self.branches["b"](x))


ALL = [
    "stem", "blocks.0.fc1", "blocks.0.fc2", "blocks.1.fc1", "blocks.1.fc2", "branches.a.fc1", "branches.a.fc2",
    "branches.b.0", "head.1",
]  # fmt: skip
X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def converted(**config: Any) -> tuple[list[str], list[str]]:
    int8 = qk.quantize(net(), {"activation": "dynamic"} | config)
    names = [name for name, m in int8.named_modules() if isinstance(m, qk.nn.QuantModule)]
    return names, qk.report(int8).notes


def without(*prefixes: str) -> list[str]:
    return [name for name in ALL if not name.startswith(prefixes)]


@pytest.mark.parametrize(
    ("exclude", "kept"),
    [
        ("head", without("head")),
        ("blocks", without("blocks")),
        ("blocks.0", without("blocks.0")),
        ("blocks.*", without("blocks")),
        ("blocks.?", without("blocks")),
        ("blocks.[1]", without("blocks.1")),
        ("branches.a", without("branches.a")),
        ("branches", without("branches")),
        ("*.fc1", [name for name in ALL if not name.endswith("fc1")]),
        ("Block", without("blocks", "branches.a")),
        ("Head", without("head")),
        ("ModuleList", without("blocks")),
        ("ModuleDict", without("branches")),
        ("Sequential", without("branches.b")),
        ("blocks.1.fc2", without("blocks.1.fc2")),
    ],
)
def test_an_excluded_container_stays_float_with_all_below_it(exclude: str, kept: list[str]) -> None:
    names, notes = converted(exclude=[exclude])
    assert names == kept
    assert not notes


@pytest.mark.parametrize(
    ("include", "kept"),
    [
        (["head"], ["head.1"]),
        (["blocks.0", "stem"], ["stem", "blocks.0.fc1", "blocks.0.fc2"]),
        (["Block"], [name for name in ALL if "fc" in name]),
        (["branches"], [name for name in ALL if name.startswith("branches")]),
        ([""], ALL),
        (["Net"], ALL),
    ],
)
def test_an_included_container_is_converted_with_all_below_it(
    include: list[str], kept: list[str]
) -> None:
    assert converted(include=include)[0] == kept


def test_the_exclusion_of_a_part_wins_over_the_inclusion_of_its_whole() -> None:
    assert converted(include=["blocks"], exclude=["blocks.0"])[0] == [
        "blocks.1.fc1",
        "blocks.1.fc2",
    ]


def test_settings_of_a_container_reach_its_layers_and_later_ones_win() -> None:
    int8 = qk.quantize(
        net(),
        {
            "overrides": {
                "Block": {"activation": "dynamic"},
                "blocks.1": {"activation": "weight_only"},
            }
        },
        [X],
    )
    kinds = {n: m.activation for n, m in int8.named_modules() if isinstance(m, qk.nn.QuantModule)}
    assert {kinds[f"blocks.1.fc{i}"] for i in (1, 2)} == {"weight_only"}
    assert {kinds[n] for n in ("blocks.0.fc1", "blocks.0.fc2", "branches.a.fc1")} == {"dynamic"}
    assert {kinds[n] for n in ("stem", "branches.b.0", "head.1")} == {"static"}


@pytest.mark.parametrize("key", ["include", "exclude", "overrides"])
@pytest.mark.parametrize(
    "pattern", ["haed", "block", "Conv2d", "blocks.2", "head.1.weight", "*fc3"]
)
def test_a_pattern_that_matches_nothing_is_named(key: str, pattern: str) -> None:
    value: Any = {pattern: {"activation": "dynamic"}} if key == "overrides" else [pattern]
    if key == "include":
        value = [*value, "head"]
    _, notes = converted(**{key: value})
    (note,) = notes
    assert repr(pattern) in note


def test_a_name_nearly_right_is_told_what_it_may_mean() -> None:
    (note,) = converted(exclude=["blocks0"])[1]
    assert "blocks.0" in note


def test_a_container_of_a_module_that_was_made_plain_keeps_its_name_and_type() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.out = (
                nn.MultiheadAttention(8, 2, batch_first=True),
                nn.Linear(8, 8),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.attention(x, x, x, need_weights=False)[0])

    for pattern in ("attention", "MultiheadAttention", "att*"):
        int8 = qk.quantize(Attending().eval(), {"activation": "dynamic", "exclude": [pattern]})
        assert type(int8.attention) is nn.MultiheadAttention
        assert isinstance(int8.out, qk.QuantLinear)
        settings = {pattern: {"activation": "weight_only"}}
        int8 = qk.quantize(Attending().eval(), {"activation": "dynamic", "overrides": settings})
        inside = {
            m.activation for m in int8.attention.modules() if isinstance(m, qk.nn.QuantModule)
        }
        assert (inside, int8.out.activation) == ({"weight_only"}, "dynamic")


def test_a_layer_under_two_names_is_excluded_by_either() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
            self.two = nn.Sequential(self.one[0])

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x))

    int8 = qk.quantize(Twice().eval(), {"activation": "dynamic", "exclude": ["two"]})
    assert type(int8.one[0]) is nn.Linear
    assert isinstance(int8.one[1], qk.QuantLinear)


def test_strict_does_not_count_what_a_container_excludes() -> None:
    config = {"activation": "dynamic", "strict": True}
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Bilinear(4, 4, 4)))
    qk.quantize(model, config | {"exclude": ["1"]})
    with pytest.raises(ValueError, match="strict"):
        qk.quantize(model, config)
