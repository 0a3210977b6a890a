"""QuantEmbedding and QuantEmbeddingBag as drop-in lookups of int8 rows."""

import copy
import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from qkernels import ops, reference
from qkernels.nn import QuantLinear, quantize_weight
from qkernels.nn.embedding import QuantEmbedding, QuantEmbeddingBag
from qkernels.ops import packed_rows

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def rounded(table: Any) -> Any:
    """The float layer with the weight that the int8 one stands for."""
    codes, scale = quantize_weight(table.weight)
    twin = copy.deepcopy(table)
    twin.weight = nn.Parameter((codes * scale[:, None]).to(table.weight.dtype))
    return twin


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 70), st.integers(1, 140), st.lists(st.integers(0, 4), max_size=3),
    st.sampled_from(DTYPES), st.sampled_from([torch.int64, torch.int32]), st.integers(0, 99),
)  # fmt: skip
def test_rows_are_those_of_the_rounded_table_to_the_bit(
    v: int, d: int, shape: list[int], dtype: torch.dtype, kind: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    table = nn.Embedding(v, d, dtype=dtype)
    index = torch.randint(0, v, shape).to(kind)
    y = QuantEmbedding.from_float(table)(index)
    assert y.dtype == dtype
    assert torch.equal(y, rounded(table)(index))


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["sum", "mean", "max"]), st.booleans(), st.booleans(), st.booleans(),
    st.sampled_from([None, 0, 3, -1]), st.lists(st.integers(0, 4), min_size=1, max_size=5),
    st.sampled_from(DTYPES), st.integers(0, 99),
)  # fmt: skip
def test_bags_of_any_kind_are_those_of_the_rounded_table(
    mode: str, flat: bool, last: bool, weighted: bool, padding: int | None, lengths: list[int],
    dtype: torch.dtype, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    last = last and flat
    table = nn.EmbeddingBag(
        9, 20, mode=mode, include_last_offset=last, padding_idx=padding, dtype=dtype
    )
    count = sum(lengths) if flat else len(lengths) * 3
    index = torch.randint(0, 9, (count,) if flat else (len(lengths), 3))
    offsets = None
    if flat:
        ends = torch.tensor([0, *lengths]).cumsum(0)
        offsets = ends if last else ends[:-1]
    weights = torch.rand(index.shape, dtype=dtype) if weighted and mode == "sum" else None
    y = QuantEmbeddingBag.from_float(table)(index, offsets, weights)
    expected = rounded(table)(index, offsets, weights)
    assert y.dtype == dtype and y.shape == expected.shape
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("bad", [-1, 9, 15, 10**6])
def test_an_index_outside_of_the_table_is_refused_even_where_the_layout_is_padded(bad: int) -> None:
    for layer in (QuantEmbedding(9, 20), QuantEmbeddingBag(9, 20)):
        with pytest.raises(IndexError):
            layer(torch.tensor([[0, bad]]))


def test_a_tied_head_holds_the_tables_own_tensors() -> None:
    torch.manual_seed(0)
    table, head = nn.Embedding(50, 32), nn.Linear(32, 50)
    head.weight = table.weight
    rows, out = QuantEmbedding.from_float(table), QuantLinear.from_float(head)
    alone, x = out(torch.ones(2, 32)), torch.ones(2, 32)
    out.weight = rows.weight
    assert out.packed_weight is rows.packed_weight and out.weight_scale is rows.weight_scale
    assert torch.equal(out(x), alone)
    expected = F.linear(x, table.weight.detach())
    assert float((F.linear(x, rows.weight) - expected).norm() / expected.norm()) < 0.01


def test_a_table_that_rescales_its_rows_stays_float_with_a_reason() -> None:
    for kind, int8 in ((nn.Embedding, QuantEmbedding), (nn.EmbeddingBag, QuantEmbeddingBag)):
        table: Any = kind(9, 20, max_norm=1.0)
        reason = int8.why_not(table)
        assert reason is not None and reason.startswith("max_norm=1.0")
        with pytest.raises(ValueError, match=r"max_norm=1\.0"):
            int8.from_float(table)
        assert int8.why_not(kind(9, 20)) is None


@pytest.mark.parametrize(
    "table",
    [
        nn.Embedding(9, 20, padding_idx=2, dtype=torch.bfloat16),
        nn.EmbeddingBag(9, 20, mode="max", include_last_offset=True, padding_idx=0),
    ],
    ids=lambda t: type(t).__name__,
)
def test_tables_look_like_their_float_class_and_are_rebuilt_from_scheme_and_state(
    table: Any,
) -> None:
    kind = {"Embedding": QuantEmbedding, "EmbeddingBag": QuantEmbeddingBag}[type(table).__name__]
    layer = kind.from_float(table)
    assert isinstance(layer, type(table))
    for name in (*QuantEmbedding.FIELDS, "max_norm", "norm_type"):
        assert getattr(layer, name) == getattr(table, name)
    assert layer.weight.dtype == table.weight.dtype and layer.weight.shape == table.weight.shape
    assert layer.bias is None and "int8 weight per row" in repr(layer)
    with torch.device("meta"):
        empty = kind.from_scheme(json.loads(json.dumps(layer.scheme())))
    empty.load_state_dict(layer.state_dict(), assign=True)
    assert set(layer.state_dict()) == {"int8_weight", "weight_scale"}
    index = torch.tensor([0, 2, 8, 3])
    call = (index, torch.tensor([0, 3, 4])) if isinstance(layer, QuantEmbeddingBag) else (index,)
    assert torch.equal(empty(*call), layer(*call))
    assert torch.equal(copy.deepcopy(layer)(*call), layer(*call))


def test_settings_that_no_table_has_are_refused() -> None:
    with pytest.raises(ValueError, match="padding_idx=9"):
        QuantEmbedding(9, 20, padding_idx=9)
    with pytest.raises(ValueError, match="mode='median'"):
        QuantEmbeddingBag(9, 20, mode="median")
    with pytest.raises(ValueError, match="activation='static'"):
        QuantEmbedding(9, 20, activation="static")


def test_rows_are_read_where_the_packed_layout_has_them() -> None:
    codes = torch.randint(-127, 128, (37, 70), dtype=torch.int8)
    layer = QuantEmbedding(37, 70)
    layer.int8_weight = codes
    assert torch.equal(packed_rows(layer.packed_weight, 37, 70, torch.arange(37)), codes)


@pytest.mark.parametrize(
    "layer",
    [
        QuantEmbedding.from_float(nn.Embedding(37, 70)),
        QuantEmbeddingBag.from_float(nn.EmbeddingBag(37, 70)),
        QuantEmbeddingBag.from_float(nn.EmbeddingBag(37, 70, mode="max")),
    ],
    ids=str,
)
def test_lookups_are_captured_by_export_with_their_bits_at_any_size(layer: nn.Module) -> None:
    free = ({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO},)
    example, index = torch.tensor([[3, 36, 5], [0, 1, 2]]), torch.randint(0, 37, (4, 7))
    program = torch.export.export(layer, (example,), strict=False, dynamic_shapes=free)
    assert torch.equal(program.module()(index), layer(index))


def test_a_lookup_is_one_operator_that_torch_can_trace() -> None:
    layer = QuantEmbedding.from_float(nn.Embedding(37, 20))
    given = (torch.tensor([[1, 36], [0, 5]]), layer.packed_weight, layer.weight_scale, 20)
    for dtype in DTYPES:
        torch.library.opcheck(torch.ops.qkernels.embedding.default, (*given, dtype))
    rows = reference.embedding(given[0], layer.int8_weight, layer.weight_scale)
    assert torch.equal(ops.embedding(*given, torch.float32), rows)
    program = torch.export.export(layer, (given[0],), strict=False)
    called = [n.target for n in program.graph.nodes if n.op == "call_function"]
    assert called == [torch.ops.qkernels.embedding.default]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"dtype": torch.int8}, "dtype is torch.int8; a float one is needed"),
        ({"columns": 900}, r"weight is torch.int8 \[\d+\]; a table of 37 rows of 900 is int8 \[\d+\]"),
        ({"weight_scale": torch.ones(37, 1)}, r"weight_scale is torch.float32 \[37, 1\]; float32 \[N\]"),
        ({"weight": torch.ones(37, 20)}, r"weight is torch.float32 \[37, 20\]; a table of 37 rows"),
    ],
)  # fmt: skip
def test_a_table_that_is_none_is_refused_with_what_is_wrong(
    change: dict[str, Any], sentence: str
) -> None:
    layer = QuantEmbedding.from_float(nn.Embedding(37, 20))
    given = {
        "weight": layer.packed_weight,
        "weight_scale": layer.weight_scale,
        "columns": 20,
        "dtype": torch.float32,
    }
    with pytest.raises(RuntimeError, match=sentence):
        ops.embedding(torch.tensor([1]), **(given | change))
