"""Attention of any heads, masks and biases as a step of a program, on every instruction set."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch.nn import functional as F
from value_steps import OneStep, floats, operands, outputs, quick

from qkernels import _core, reference
from qkernels.program.format import Step, Value, assemble
from qkernels.reference import Epilogue, Operand, heads_of


@dataclass
class Case:
    """Tokens of queries, keys and values with their first channels, and how they meet."""

    q: Operand
    k: Operand
    v: Operand
    heads: int
    kv_heads: int
    width: int
    v_width: int
    channels: tuple[int, int, int] = (0, 0, 0)
    exponent: float = 0.5
    causal: bool = False
    bias: Tensor | None = None  # [n, heads or 1, T or 1, S], read by images in turn
    as_value: bool = False  # the bias, or else a constant
    int8_from: int = 0

    def fields(self) -> dict[str, Any]:
        names = ("heads", "kv_heads", "width", "v_width", "exponent", "causal", "int8_from")
        fields = {name: getattr(self, name) for name in names}
        for name, operand, channel in zip(
            "qkv", (self.q, self.k, self.v), self.channels, strict=True
        ):
            fields |= {
                f"{name}_scale": operand.scale,
                f"{name}_zero": operand.zero_point,
                f"{name}_channel": channel,
            }
        if self.bias is not None and not self.as_value:
            fields |= dict(
                zip(("bias_n", "bias_heads", "bias_q", "bias_k"), self.bias.shape, strict=True)
            )
        return fields

    def expected(self, e: Epilogue) -> Tensor:
        parts = []
        sizes = (
            (self.heads, self.width),
            (self.kv_heads, self.width),
            (self.kv_heads, self.v_width),
        )
        for operand, at, (heads, width) in zip(
            (self.q, self.k, self.v), self.channels, sizes, strict=True
        ):
            parts.append(heads_of(operand.floats()[..., at : at + heads * width], heads))
        bias, n = self.bias, self.q.values.shape[0]
        if bias is not None:
            bias = bias.repeat(-(-n // bias.shape[0]), 1, 1, 1)[:n]
        query, key, value = parts
        small = 0 < self.int8_from <= key.shape[2]
        attention = reference.attention_s8 if small else reference.attention
        return attention(query, key, value, self.exponent, e, bias=bias, causal=self.causal)

    def step(self, e: Epilogue) -> tuple[OneStep, list[Operand]]:
        n, t = self.q.values.shape[:2]
        given = [self.q, self.k, self.v]
        constants = {}
        if self.bias is not None and self.as_value:
            given.append(Operand(self.bias))
        elif self.bias is not None:
            constants["bias"] = self.bias.numpy()
        return OneStep(
            "attention", self.fields(), e, (n, t, self.heads * self.v_width), constants
        ), given

    def check(self, e: Epilogue, threads: int) -> None:
        step, given = self.step(e)
        step.check(given, self.expected(e), threads)


TOKENS = st.sampled_from([1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 40, 65])
HEADS = st.sampled_from([1, 2, 3, 8, 15, 16, 17, 32, 40])


@st.composite
def cases(draw: Any) -> Case:
    n, t, s = draw(st.integers(1, 4)), draw(TOKENS), draw(TOKENS)
    kv_heads, shared, width, v_width = (
        draw(st.integers(1, 2)),
        draw(st.integers(1, 3)),
        draw(HEADS),
        draw(HEADS),
    )
    heads = kv_heads * shared
    before = tuple(draw(st.sampled_from([0, 1, 5])) for _ in range(3))
    tokens = ((t, heads * width), (s, kv_heads * width), (s, kv_heads * v_width))
    q, k, v = (
        draw(operands((n, count, at + channels + draw(st.sampled_from([0, 3])))))
        for at, (count, channels) in zip(before, tokens, strict=True)
    )
    case = Case(
        q, k, v, heads, kv_heads, width, v_width, before, draw(st.sampled_from([1.0, 0.125, 1.4]))
    )  # type: ignore[arg-type]
    case.causal, case.as_value = draw(st.booleans()), draw(st.booleans())
    case.int8_from = draw(st.sampled_from([0, 1, s, s + 1]))
    if draw(st.booleans()):
        images = n if case.as_value else draw(st.integers(1, 3))
        size = (images, draw(st.sampled_from([1, heads])), draw(st.sampled_from([1, t])), s)
        case.bias = floats(draw(st.integers(0, 99)), size)
        if draw(st.booleans()):
            case.bias[case.bias > 1] = draw(
                st.sampled_from([-torch.inf, torch.finfo(torch.float32).min])
            )
    return case


@given(case=cases(), e=outputs(), threads=st.integers(1, 3))
@quick(150)
def test_attention_of_any_kind_adds_in_the_order_of_the_reference(
    case: Case, e: Epilogue, threads: int
) -> None:
    case.check(e, threads)


def test_queries_keys_and_values_may_be_parts_of_one_value() -> None:
    packed = Operand(floats(0, (2, 19, 3 * 24)))
    case = Case(packed, packed, packed, 2, 2, 12, 12, (0, 24, 48))
    values = [Value(72, 3, "float32", callers=True), Value(24, 3, "float32", callers=True)]
    step = Step("attention", "it", 0, 1, (0, 0), case.fields())
    (y,) = _core.Program(assemble(values, [step], [0], [1])).run([packed.values.numpy()])
    assert np.array_equal(y, case.expected(Epilogue()).numpy())


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_close_to_torch_in_double_and_the_same_on_three_threads(
    causal: bool, masked: bool
) -> None:
    q, k, v = (Operand(floats(i, (2, 77, 4 * 32), spread=1.0)) for i in range(3))
    case = Case(q, k, v, 4, 4, 32, 32, exponent=math.log2(math.e) / math.sqrt(32), causal=causal)
    if masked:
        case.bias = torch.where(floats(3, (2, 1, 1, 77)) > 2, torch.finfo(torch.float32).min, 0.0)
        case.as_value = True
    query, key, value = (heads_of(x.values.double(), 4) for x in (q, k, v))
    mask = (
        torch.zeros(2, 1, 77, 77, dtype=torch.float64)
        if case.bias is None
        else case.bias.double().expand(2, 1, 77, 77)
    )
    if causal:
        mask = mask.masked_fill(torch.ones(77, 77, dtype=torch.bool).triu(1), -torch.inf)
    exact = F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2).flatten(2)
    step, given = case.step(Epilogue())
    one, three = (step.run(given, "scalar", threads) for threads in (1, 3))
    assert torch.equal(one, three)
    assert (one.double() - exact).abs().max() < 2e-6 * exact.abs().max()


@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0])
def test_attention_of_int8_products_stays_near_torch_where_keys_have_much_in_common(
    spread: float,
) -> None:
    q, k, v = (Operand(floats(i, (1, 200, 2 * 64), spread=spread)) for i in range(3))
    k.values += 10 * floats(3, (128,), spread=1.0)
    case = Case(q, k, v, 2, 2, 64, 64, exponent=math.log2(math.e) / 8, int8_from=200)
    query, key, value = (heads_of(x.values.double(), 2) for x in (q, k, v))
    exact = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    step, given = case.step(Epilogue())
    y = step.run(given, "scalar", 2)
    assert (y - exact).square().sum() < 10**-2.8 * exact.square().sum()


@pytest.mark.parametrize("threads", [1, 3])
def test_the_most_keys_that_int8_products_take_overflow_no_sum(threads: int) -> None:
    count = _core.MAX_K
    q, k = Operand(torch.ones(1, 1, 1)), Operand(torch.ones(1, count, 1))
    v = Operand(torch.full((1, count, 16), -1.0))
    v.values[:, :, 1] = 1.0
    case = Case(q, k, v, 1, 1, 1, 16, int8_from=1)
    case.check(Epilogue(), threads)
    step, given = case.step(Epilogue())
    y = step.run(given, "scalar", 1)
    assert torch.allclose(y[0, 0], v.values[0, 0], rtol=1e-3)


def test_more_keys_than_int8_sums_hold_are_multiplied_as_floats() -> None:
    count = _core.MAX_K + 1
    q, k, v = (Operand(floats(i, (1, n, 1))) for i, n in enumerate((1, count, count)))
    int8, never = (
        Case(q, k, v, 1, 1, 1, 1, int8_from=start).step(Epilogue())[0] for start in (1, 0)
    )
    assert torch.equal(int8.run([q, k, v], "scalar", 1), never.run([q, k, v], "scalar", 1))


def test_a_token_that_may_read_no_key_gives_zeros_and_one_that_all_are_masked_for_their_mean() -> (
    None
):
    q, v = Operand(torch.ones(1, 2, 4)), Operand(floats(0, (1, 3, 4)))
    least = torch.finfo(torch.float32).min
    bias = torch.tensor([[-torch.inf] * 3, [least] * 3])[None, None]
    case = Case(q, replace(v), v, 1, 1, 4, 4, bias=bias)
    step, given = case.step(Epilogue())
    y = step.run(given, "scalar", 1)
    assert (y[0, 0] == 0).all()
    assert torch.allclose(y[0, 1], v.values[0].mean(0), atol=1e-6)


def forged(fields: dict[str, Any], bias: np.ndarray | None = None) -> Any:
    q = Operand(torch.ones(2, 3, 8))
    case = Case(q, q, q, 2, 2, 4, 4)
    values = [Value(8, 3, "float32", callers=True), Value(8, 3, "float32", callers=True)]
    constants = {} if bias is None else {"bias": bias}
    step = Step("attention", "it", 0, 1, (0, 0), {**case.fields(), **fields}, constants)
    return _core.Program(assemble(values, [step], [0], [1]))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"heads": 0}, "its heads have no sizes"),
        ({"heads": 3}, "its heads have no sizes"),
        ({"width": 5}, "its heads reach beyond the channels of what it reads"),
        ({"v_channel": 1}, "its heads reach beyond the channels of what it reads"),
        ({"k_channel": -1}, "its heads reach beyond the channels of what it reads"),
        ({"v_width": 3}, "its output is not as wide as its heads"),
        ({"exponent": 0.0}, "the factor of its scores is not finite and above 0"),
        ({"causal": 2}, "its flag is neither 0 nor 1"),
        ({"int8_from": -1}, "its products become int8 from less than 0 keys on"),
        ({"k_scale": np.inf}, "a scale is not finite and above 0"),
    ],
)  # fmt: skip
def test_a_forged_payload_is_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        forged(fields)


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ((1, 1, 1, 3), "its bias lies outside"),
        ((1, 3, 1, 2), "its bias has no sizes"),
        ((0, 1, 1, 6), "its bias has no sizes"),
    ],
)
def test_a_bias_of_other_bytes_is_refused(sizes: tuple[int, ...], sentence: str) -> None:
    names = ("bias_n", "bias_heads", "bias_q", "bias_k")
    with pytest.raises(ValueError, match=sentence):
        forged(dict(zip(names, sizes, strict=True)), np.zeros(6, np.float32))


def test_a_bias_of_other_tokens_is_refused_at_the_call() -> None:
    program = forged({"bias_k": 4}, np.zeros(4, np.float32))
    with pytest.raises(
        ValueError, match="its bias is 1x1x1x4 for 2x2 heads of 3 queries and 3 keys"
    ):
        program.run([np.ones((2, 3, 8), np.float32)])


def test_values_of_other_tokens_than_the_keys_are_refused_at_the_call() -> None:
    q, v = Operand(torch.ones(2, 3, 4)), Operand(torch.ones(2, 5, 4))
    case = Case(q, q, v, 1, 1, 4, 4)
    step, given = case.step(Epilogue())
    with pytest.raises(ValueError, match="its queries are 2x3, its keys 2x3 and its values 2x5"):
        step.run(given, "scalar", 1)
