"""Masks that follow from what the caller gives: tables of words in the program, in whichever spelling the model has."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qkernels as qk
from qkernels.graph.compiled import CompiledModel

WIDTH, TOKENS, WORDS, HEADS = 16, 6, 30, 2
LEAST = torch.finfo(torch.float32).min
Mask = Callable[[Tensor, Tensor], Tensor]  # of words [N, T] and a mask [N, T]


class Attending(nn.Module):
    """A layer of attention behind an embedding, with the mask that a function makes of the call's integers."""

    def __init__(self, mask: Mask) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mask = mask

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        x = self.words(words)
        q, k, v = self.qkv(x).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask(words, mask))
        return self.out(y.transpose(1, 2).flatten(2))


def across(mask: Tensor) -> Tensor:
    """[N, T] as keys of every query: [N, 1, 1, T]."""
    return mask[:, None, None, :]


def causal() -> Tensor:
    return torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()


SPELLINGS: dict[str, Mask] = {
    "truth values": lambda words, mask: across(mask).bool(),
    "a comparison": lambda words, mask: across(mask != 0).expand(-1, -1, TOKENS, -1),
    "numbers from 1 down": lambda words, mask: (1.0 - across(mask).float()) * LEAST,
    "integers from 1 down": lambda words, mask: (1 - across(mask)).float() * -10000.0,
    "filled": lambda words, mask: torch.zeros(1, 1, TOKENS, TOKENS).masked_fill(across(mask == 0), LEAST),
    "minus infinity": lambda words, mask: across(mask).float().masked_fill(across(mask == 0), -math.inf),
    "a choice": lambda words, mask: torch.where(across(mask.bool()), 0.0, LEAST),
    "a choice of a bias": lambda words, mask: torch.where(
        across(mask.bool()), torch.arange(TOKENS * TOKENS).view(TOKENS, TOKENS) / 9, LEAST
    ),
    "the words themselves": lambda words, mask: across((words != 0).logical_and(mask.bool())),
    "of a position": lambda words, mask: mask.bool()[
        torch.arange(mask.shape[0])[:, None, None, None], torch.arange(TOKENS)[None, None, None, :]
    ],
    "and causal": lambda words, mask: causal() & across(mask.bool()),
    "or the first": lambda words, mask: (torch.arange(TOKENS) == 0) | across(mask.bool()),
    "not": lambda words, mask: ~(across(mask == 0) | ~causal()),
    "behind a longer one": lambda words, mask: across(mask.bool())[:, :, :, : words.shape[1]],
}  # fmt: skip


def batch(count: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Words of which those that the mask leaves out are 0."""
    words = torch.randint(1, WORDS, (count, TOKENS), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(words)
    for i in range(count):
        mask[i, TOKENS - i % 3 :] = 0
    return words * mask, mask


def compiled(mask: Mask) -> tuple[nn.Module, CompiledModel]:
    torch.manual_seed(0)
    int8 = qk.quantize(Attending(mask).eval(), "static", [batch(100)])
    return int8, qk.compile(int8, batch())


def noise(expected: Tensor, got: Tensor) -> float:
    return float((expected - got).norm() / expected.norm())


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_mask_in_any_spelling_is_a_part_of_the_one_program(spelling: str) -> None:
    int8, fast = compiled(SPELLINGS[spelling])
    assert fast.program is not None, fast.report.unfused
    for count in (1, 3, 4):
        given = batch(count, seed=count)
        assert noise(int8(*given), fast(*given)) < 0.03
        other = (given[0], torch.ones_like(given[1]))
        if count > 1 and "words" not in spelling:
            assert noise(int8(*given), int8(*other)) > 0.06  # what the mask says shows


def test_a_mask_that_holds_another_number_is_refused_by_its_place() -> None:
    _, fast = compiled(SPELLINGS["truth values"])
    words, mask = batch()
    mask[1, 2] = 2
    with pytest.raises(RuntimeError, match=r"the id at \[1, 2\] is 2, outside \[0, 2\)"):
        fast(words, mask)


def test_a_word_beyond_the_table_is_refused_where_a_mask_follows_from_it_too() -> None:
    _, fast = compiled(SPELLINGS["the words themselves"])
    words, mask = batch()
    words[0, 3] = WORDS
    with pytest.raises(RuntimeError, match=rf"the id at \[0, 3\] is {WORDS}, outside"):
        fast(words, mask)


def test_an_example_whose_mask_is_no_mask_stays_with_torch() -> None:
    torch.manual_seed(0)
    words, mask = batch()
    int8 = qk.quantize(Attending(SPELLINGS["truth values"]).eval(), "static", [batch(100)])
    fast = qk.compile(int8, (words, mask * 3))
    assert any("to" in step for step in fast.report.unfused)
    assert noise(int8(words, mask * 5), fast(words, mask * 5)) < 0.02


def test_words_and_a_mask_of_different_batches_are_refused() -> None:
    for given in (SPELLINGS["truth values"], SPELLINGS["of a position"]):
        _, fast = compiled(given)
        words, mask = batch()
        with pytest.raises((ValueError, RuntimeError), match="batch"):
            fast(words, mask[:1])


class Padded(nn.Module):
    """Truth values as an input, 1 where a token is padding, and tokens that become 0 there."""

    def __init__(self) -> None:
        super().__init__()
        self.attending, self.last = (
            nn.MultiheadAttention(WIDTH, HEADS, batch_first=True),
            nn.Linear(WIDTH, 3),
        )

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        y, _ = self.attending(x, x, x, key_padding_mask=padding, need_weights=False)
        return self.last(y.masked_fill(padding[:, :, None], 0.0))


def test_truth_values_are_an_input_of_a_program() -> None:
    torch.manual_seed(0)
    x, padding = torch.randn(3, TOKENS, WIDTH), torch.zeros(3, TOKENS, dtype=torch.bool)
    padding[0, 4:] = True
    int8 = qk.quantize(Padded().eval(), "static", [(x, padding)])
    fast = qk.compile(int8, (x, padding))
    assert fast.program is not None, fast.report.unfused
    assert noise(int8(x, padding), fast(x, padding)) < 0.05
    array = fast.program.program(x.numpy(), padding.numpy())
    assert torch.equal(torch.from_numpy(array), fast(x, padding))
