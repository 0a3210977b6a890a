"""Turning amounts into channel counts."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from qkernels.prune.groups import ChannelGroup
from qkernels.prune.selection import Selector

counts = st.lists(st.integers(1, 70), min_size=1, max_size=5)


def selector(channels: list[int], seed: int, **settings: object) -> Selector:
    generator = torch.Generator().manual_seed(seed)
    groups = [ChannelGroup(str(i), count, ()) for i, count in enumerate(channels)]
    scores = [torch.rand(count, generator=generator) for count in channels]
    given = {"scope": "global", "multiple": 1, "relative": True, "order": "lowest", **settings}
    return Selector.of(groups, scores, **given)  # type: ignore[arg-type]


@given(
    counts,
    st.integers(0, 9),
    st.sampled_from([1, 4, 16]),
    st.floats(0, 1),
    st.sampled_from(["layer", "global"]),
)
def test_rounding_leaves_whole_multiples_and_never_drops_more(
    channels: list[int], seed: int, multiple: int, amount: float, scope: str
) -> None:
    chosen = selector(channels, seed, multiple=multiple, scope=scope)
    wanted = chosen.wanted(amount)
    for had, asked, dropped in zip(channels, wanted, chosen.rounded(wanted), strict=True):
        left = had - dropped
        assert 0 <= dropped <= asked <= had and left >= 1
        assert left % multiple == 0 or left == had
        assert left - max(1, had - asked) < multiple


@given(counts, st.integers(0, 9), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_amount_never_gives_a_channel_back(
    channels: list[int], seed: int, one: float, other: float
) -> None:
    chosen = selector(channels, seed, multiple=8)
    less, more = (chosen.rounded(chosen.wanted(a)) for a in sorted([one, other]))
    assert all(a <= b for a, b in zip(less, more, strict=True))


@given(counts, st.integers(0, 9))
def test_the_global_amount_counts_all_channels(channels: list[int], seed: int) -> None:
    total = sum(channels)
    chosen = selector(channels, seed)
    for drop in range(total + 1):
        assert sum(chosen.wanted(drop / total)) == drop
