"""PlainAttention against nn.MultiheadAttention."""

import copy
import json
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from qkernels.modules.swap import inherit_from
from qkernels.plain import PlainAttention, plain_form


def close(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, equal_nan=True)


def plain(attention: nn.Module) -> PlainAttention:
    form = plain_form(attention)
    assert form is not None and isinstance(form.module, PlainAttention)
    return form.module


SETTINGS = st.fixed_dictionaries(
    {
        "num_heads": st.sampled_from([1, 2, 3]),
        "bias": st.booleans(),
        "add_bias_kv": st.booleans(),
        "add_zero_attn": st.booleans(),
        "kdim": st.sampled_from([None, 5]),
        "vdim": st.sampled_from([None, 7]),
        "batch_first": st.booleans(),
    }
)
CALLS = st.fixed_dictionaries(
    {
        "mask": st.sampled_from([None, "bool", "float", "bool3", "float3", "causal", "hint"]),
        "padding": st.sampled_from([None, "bool", "float"]),
        "need_weights": st.booleans(),
        "average_attn_weights": st.booleans(),
        "batched": st.booleans(),
    }
)


def inputs(attention: nn.MultiheadAttention, n: int, t: int, s: int, batched: bool) -> list[Tensor]:
    sides = [
        (t, attention.embed_dim),
        (s, attention.kdim),
        (s, attention.vdim),
    ]
    made = [torch.randn(n, *side) for side in sides]
    if not batched:
        return [x[0] for x in made]
    return made if attention.batch_first else [x.transpose(0, 1) for x in made]


def masks(call: dict[str, Any], heads: int, n: int, t: int, s: int) -> dict[str, Any]:
    made: dict[str, Any] = {k: call[k] for k in ("need_weights", "average_attn_weights")}
    kind = call["mask"]
    if kind in ("causal", "hint"):
        made["attn_mask"] = torch.ones(t, s, dtype=torch.bool).triu(1)
        made["is_causal"] = kind == "hint"
    elif kind is not None:
        shape = (n * heads, t, s) if kind.endswith("3") else (t, s)
        mask = torch.rand(shape) < 0.3
        mask[..., 0] = False
        made["attn_mask"] = mask if kind.startswith("bool") else torch.randn(shape)
    if call["padding"] is not None:
        hidden = torch.rand(n, s) < 0.4
        hidden[:, 0] = False
        hidden = hidden if call["batched"] else hidden[0]
        made["key_padding_mask"] = (
            hidden if call["padding"] == "bool" else torch.randn(hidden.shape)
        )
    return made


@pytest.mark.filterwarnings("ignore:Support for mismatched")
@settings(max_examples=120, deadline=None)
@given(SETTINGS, CALLS, st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(0, 99))
def test_outputs_and_weights_are_those_of_torch(
    config: dict[str, Any], call: dict[str, Any], n: int, t: int, s: int, seed: int
) -> None:
    torch.manual_seed(seed)
    n = n if call["batched"] else 1
    attention = nn.MultiheadAttention(12, **config).eval()
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.5)
    q, k, v = inputs(attention, n, t, s, call["batched"])
    arguments = masks(call, config["num_heads"], n, t, s)
    expected = attention(q, k, v, **arguments)
    answer = plain(attention)(q, k, v, **arguments)
    assert answer[0].shape == expected[0].shape
    close(answer, expected)


@pytest.mark.parametrize("need_weights", [True, False])
def test_self_attention_without_gradients_equals_torch_fast_path(need_weights: bool) -> None:
    torch.manual_seed(0)
    attention, x = nn.MultiheadAttention(8, 2, batch_first=True).eval(), torch.randn(3, 5, 8)
    padding = torch.tensor([[False] * 5, [False] * 4 + [True], [False] * 2 + [True] * 3])
    with torch.no_grad():
        expected = attention(x, x, x, key_padding_mask=padding, need_weights=need_weights)
        answer = plain(attention)(x, x, x, key_padding_mask=padding, need_weights=need_weights)
    close(answer, expected)


def test_causal_hint_without_a_mask_is_refused_as_torch_does() -> None:
    x = torch.randn(3, 1, 8)
    with pytest.raises(RuntimeError, match="give the mask"):
        plain(nn.MultiheadAttention(8, 2))(x, x, x, is_causal=True)


@pytest.mark.parametrize("shape", [(4, 3), (2, 5, 5), (3,)])
def test_a_mask_of_the_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    x = torch.randn(5, 3, 8)
    with pytest.raises((RuntimeError, AssertionError)):
        plain(nn.MultiheadAttention(8, 2))(x, x, x, attn_mask=torch.zeros(shape))


def test_dropout_of_weights_is_torchs_in_training() -> None:
    torch.manual_seed(0)
    attention, x = nn.MultiheadAttention(8, 2, dropout=0.5), torch.randn(4, 3, 8)
    torch.manual_seed(1)
    expected = attention(x, x, x)
    torch.manual_seed(1)
    close(plain(attention)(x, x, x), expected)


def test_parameters_are_shared_and_gradients_reach_them() -> None:
    attention = nn.MultiheadAttention(8, 2, add_bias_kv=True)
    new = plain(attention)
    assert new.q_proj.weight.data_ptr() == attention.in_proj_weight.data_ptr()
    assert new.out_proj.weight is attention.out_proj.weight
    x = torch.randn(4, 3, 8)
    new(x, x, x)[0].sum().backward()
    assert all(p.grad is not None for p in new.parameters())


@pytest.mark.parametrize("kdim", [None, 5])
def test_what_torch_keeps_as_parameters_is_read_from_the_layers(kdim: int | None) -> None:
    attention = nn.MultiheadAttention(8, 2, kdim=kdim)
    new = plain(attention)
    assert isinstance(new, nn.MultiheadAttention)
    if kdim is None:
        assert torch.equal(new.in_proj_weight, attention.in_proj_weight)
    else:
        assert new.in_proj_weight is None
        assert torch.equal(new.k_proj_weight, attention.k_proj_weight)
    assert torch.equal(new.in_proj_bias, attention.in_proj_bias)
    assert torch.equal(new.in_proj_bias.chunk(3)[1] * 2, attention.in_proj_bias.chunk(3)[1] * 2)
    for name in ("embed_dim", "num_heads", "head_dim", "kdim", "vdim", "batch_first", "dropout"):
        assert getattr(new, name) == getattr(attention, name)


def test_a_user_who_reads_the_weights_computes_the_same() -> None:
    torch.manual_seed(0)
    attention, x = nn.MultiheadAttention(8, 2).eval(), torch.randn(5, 3, 8)
    new = plain(attention)
    answer = F.multi_head_attention_forward(
        x, x, x, 8, 2, new.in_proj_weight, new.in_proj_bias, new.bias_k, new.bias_v, False, 0.0,
        new.out_proj.weight, new.out_proj.bias, training=False,
    )  # fmt: skip
    close(answer, attention(x, x, x))


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("mask_check", [True, False])
def test_encoder_with_a_padding_mask_calls_the_layers(
    norm_first: bool, grad: bool, mask_check: bool
) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
    encoder = nn.TransformerEncoder(layer, 2, None, not norm_first, mask_check).eval()
    x, padding = torch.randn(2, 4, 8), torch.tensor([[False] * 4, [False, False, True, True]])
    with torch.set_grad_enabled(grad):
        expected = encoder(x, src_key_padding_mask=padding)
        calls = []
        for block in encoder.layers:
            block.self_attn = plain(block.self_attn)
        encoder.layers[1].self_attn.q_proj.register_forward_hook(lambda *a: calls.append(a))
        answer = encoder(x, src_key_padding_mask=padding)
    close(answer[~padding], expected[~padding])
    assert len(calls) == 1


def test_decoder_layer_and_whole_transformer_answer_as_before() -> None:
    torch.manual_seed(0)
    model = nn.Transformer(8, 2, 1, 2, 16, batch_first=True).eval()
    src, tgt = torch.randn(2, 4, 8), torch.randn(2, 3, 8)
    mask = nn.Transformer.generate_square_subsequent_mask(3)
    with torch.no_grad():
        expected = model(src, tgt, tgt_mask=mask, tgt_is_causal=True)
        for module in list(model.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.MultiheadAttention):
                    setattr(module, name, plain(child))
        answer = model(src, tgt, tgt_mask=mask, tgt_is_causal=True)
    close(answer, expected)


def test_an_empty_module_of_the_scheme_takes_the_state_on_meta_too() -> None:
    new = plain(nn.MultiheadAttention(12, 3, kdim=5, add_bias_kv=True, batch_first=True).eval())
    scheme = json.loads(json.dumps(new.scheme()))
    with torch.device("meta"):
        empty = PlainAttention.from_scheme(scheme)
    assert all(p.is_meta for p in empty.parameters())
    empty.load_state_dict(new.state_dict(), assign=True)
    q, k, v = torch.randn(2, 4, 12), torch.randn(2, 3, 5), torch.randn(2, 3, 12)
    assert torch.equal(empty.eval()(q, k, v)[0], new(q, k, v)[0])


def test_a_float_module_on_meta_gives_a_plain_one_on_meta() -> None:
    new = plain(nn.MultiheadAttention(8, 2, device="meta"))
    assert all(p.is_meta for p in new.parameters())


def test_a_deep_copy_answers_alone() -> None:
    new, x = plain(nn.MultiheadAttention(8, 2).eval()), torch.randn(4, 1, 8)
    twin = copy.deepcopy(new)
    expected = new(x, x, x)[0]
    with torch.no_grad():
        new.q_proj.weight.zero_()
    assert torch.equal(twin(x, x, x)[0], expected)


def test_what_a_swap_carries_over_leaves_the_module_whole() -> None:
    attention, x = nn.MultiheadAttention(8, 2).eval(), torch.randn(4, 1, 8)
    new = plain(attention)
    inherit_from(new, attention)
    assert not new._qkv_same_embed_dim
    for twin in (copy.deepcopy(new), pickle.loads(pickle.dumps(new))):
        close(twin(x, x, x), attention(x, x, x))


def test_the_forward_of_a_subclass_is_not_taken_for_torchs() -> None:
    class Mine(nn.MultiheadAttention):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x, x, x)[0] * 2

    assert plain_form(Mine(8, 2)) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_go_through(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2).eval().to(dtype)
    x = torch.randn(4, 3, 8).to(dtype)
    answer, expected = plain(attention)(x, x, x)[0], attention(x, x, x)[0]
    assert answer.dtype == dtype
    torch.testing.assert_close(answer, expected, rtol=0.05, atol=0.02)
