"""PlainLSTM, PlainGRU, PlainRNN and their cells against torch's."""

import copy
import json
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from qkernels.modules.swap import inherit_from
from qkernels.plain import PlainCell, PlainLSTM, PlainRecurrent, plain_form


def close(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def plain(module: nn.Module) -> nn.Module:
    form = plain_form(module)
    assert form is not None and isinstance(form.module, PlainRecurrent | PlainCell)
    return form.module


KINDS = [(nn.LSTM, {}), (nn.GRU, {}), (nn.RNN, {}), (nn.RNN, {"nonlinearity": "relu"})]
CONFIGS = st.fixed_dictionaries(
    {
        "num_layers": st.integers(1, 3),
        "bias": st.booleans(),
        "batch_first": st.booleans(),
        "bidirectional": st.booleans(),
    }
)


def state(module: nn.RNNBase, n: int | None) -> Any:
    layers = module.num_layers * (1 + module.bidirectional)
    batch = () if n is None else (n,)
    h = torch.randn(layers, *batch, module.proj_size or module.hidden_size)
    return (h, torch.randn(layers, *batch, module.hidden_size)) if module.mode == "LSTM" else h


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(KINDS), CONFIGS, st.sampled_from([0, 3]), st.sampled_from([None, 1, 3]),
    st.integers(1, 5), st.booleans(), st.integers(0, 99),
)  # fmt: skip
def test_a_sequence_gives_torchs_outputs_and_states(
    kind: Any, config: dict[str, Any], proj: int, n: int | None, steps: int, given: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    more = {"proj_size": proj} if kind[0] is nn.LSTM else {}
    module = kind[0](5, 6, **kind[1], **config, **more).eval()
    x = torch.randn(steps, 5) if n is None else torch.randn(steps, n, 5)
    x = x.transpose(0, 1) if n is not None and config["batch_first"] else x
    hx = state(module, n) if given else None
    close(plain(module)(x, hx), module(x, hx))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(KINDS), CONFIGS, st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.booleans(), st.booleans(), st.integers(0, 99),
)  # fmt: skip
def test_a_packed_batch_of_any_lengths_gives_torchs_outputs_and_states(
    kind: Any, config: dict[str, Any], lengths: list[int], sort: bool, given: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    module = kind[0](5, 6, **kind[1], **config).eval()
    lengths = sorted(lengths, reverse=True) if sort else lengths
    x = torch.randn(len(lengths), max(lengths), 5)
    packed = pack_padded_sequence(x, torch.tensor(lengths), batch_first=True, enforce_sorted=sort)
    hx = state(module, len(lengths)) if given else None
    answer, expected = plain(module)(packed, hx), module(packed, hx)
    assert isinstance(answer[0], PackedSequence)
    for ours, torchs in zip(answer[0], expected[0], strict=True):
        close(ours, torchs)
    close(answer[1], expected[1])


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([nn.LSTMCell, nn.GRUCell, nn.RNNCell]), st.booleans(),
    st.sampled_from([None, 1, 4]), st.booleans(), st.integers(0, 99),
)  # fmt: skip
def test_a_cell_gives_torchs_state(
    kind: Any, bias: bool, n: int | None, given: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    cell = kind(5, 6, bias=bias)
    batch = () if n is None else (n,)
    x, h = torch.randn(*batch, 5), torch.randn(*batch, 6)
    hx = None if not given else (h, torch.randn(*batch, 6)) if kind is nn.LSTMCell else h
    close(plain(cell)(x, hx), cell(x, hx))


def test_a_cell_keeps_its_nonlinearity() -> None:
    cell, x = nn.RNNCell(5, 6, nonlinearity="relu"), torch.randn(2, 5)
    close(plain(cell)(x), cell(x))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_the_new_module_is_an_instance_of_the_float_class_and_has_its_weights(kind: Any) -> None:
    module = kind(5, 6)
    new = plain(module)
    assert isinstance(new, kind)
    for name, parameter in module.named_parameters():
        assert getattr(new, name) is parameter
    assert str(new).startswith("Plain")
    assert all(isinstance(child, nn.Linear) for child in new.children())


def test_what_torch_offers_for_flat_weights_still_answers() -> None:
    module = nn.LSTM(5, 6, 2, bidirectional=True, proj_size=3)
    new = plain(module)
    assert isinstance(new, PlainLSTM)
    new.flatten_parameters()
    new.float().half().float()
    assert [[w.shape for w in ws] for ws in new.all_weights] == [
        [w.shape for w in ws] for ws in module.all_weights
    ]
    assert not hasattr(plain(nn.GRU(5, 6, bias=False)), "bias_ih_l0")


def test_the_input_product_is_made_once_for_all_steps() -> None:
    new = plain(nn.LSTM(5, 6))
    rows: dict[str, list[Any]] = {"ih": [], "hh": []}
    for name in rows:
        layer = new.get_submodule(f"{name}_l0")
        layer.register_forward_hook(lambda m, x, y, name=name: rows[name].append(x[0].shape))
    new(torch.randn(7, 2, 5))
    assert rows["ih"] == [(7, 2, 5)] and rows["hh"] == [(2, 6)] * 7


def test_dropout_between_layers_acts_in_training_only() -> None:
    torch.manual_seed(0)
    module = nn.LSTM(5, 6, 2, dropout=0.9)
    x, new = torch.randn(4, 2, 5), plain(module)
    assert new.training and not torch.allclose(new(x)[0], new(x)[0])
    close(new.eval()(x)[0], module.eval()(x)[0])


def test_gradients_reach_all_weights() -> None:
    new = plain(nn.GRU(5, 6, 2, bidirectional=True))
    new(torch.randn(4, 2, 5))[0].sum().backward()
    assert all(p.grad is not None for p in new.parameters())


BAD: list[tuple[Any, Any, type[Exception]]] = [
    (torch.randn(4, 2, 3), None, RuntimeError),
    (torch.randn(5), None, ValueError),
    (torch.randn(0, 2, 5), None, RuntimeError),
    (torch.randn(4, 2, 5), (torch.randn(1, 3, 6), torch.randn(1, 2, 6)), RuntimeError),
    (torch.randn(4, 2, 5), (torch.randn(1, 2, 6), torch.randn(1, 2, 7)), RuntimeError),
    (torch.randn(4, 2, 5), (torch.randn(1, 6), torch.randn(1, 6)), RuntimeError),
]


@pytest.mark.parametrize(("x", "hx", "error"), BAD)
def test_shapes_that_torch_refuses_are_refused(x: Tensor, hx: Any, error: type[Exception]) -> None:
    module = nn.LSTM(5, 6)
    for lstm in (module, plain(module)):
        with pytest.raises(error):
            lstm(x, hx)


@pytest.mark.parametrize(
    "module",
    [
        nn.LSTM(5, 6, 2, proj_size=3, bidirectional=True, batch_first=True),
        nn.GRU(5, 6, bias=False),
        nn.RNN(5, 6, nonlinearity="relu"),
        nn.LSTMCell(5, 6),
        nn.RNNCell(5, 6, nonlinearity="relu"),
    ],
)
def test_an_empty_module_of_the_scheme_takes_the_state_on_meta_too(module: nn.Module) -> None:
    new: Any = plain(module.eval())
    scheme = json.loads(json.dumps(new.scheme()))
    with torch.device("meta"):
        empty = type(new).from_scheme(scheme)
    assert all(p.is_meta for p in empty.parameters())
    empty.load_state_dict(new.state_dict(), assign=True)
    x = torch.randn(2, 5) if isinstance(new, PlainCell) else torch.randn(2, 3, 5)
    close(empty.eval()(x), new(x))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRUCell])
def test_a_float_module_on_meta_gives_a_plain_one_on_meta(kind: Any) -> None:
    assert all(p.is_meta for p in plain(kind(5, 6, device="meta")).parameters())


def test_a_deep_copy_answers_alone() -> None:
    new, x = plain(nn.LSTM(5, 6)), torch.randn(3, 2, 5)
    twin, expected = copy.deepcopy(new), new(x)[0]
    with torch.no_grad():
        new.get_submodule("ih_l0").weight.zero_()  # type: ignore[union-attr, operator]
    assert torch.equal(twin(x)[0], expected)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell])
def test_what_a_swap_carries_over_leaves_the_module_whole(kind: Any) -> None:
    module = kind(5, 6)
    module.f = -1  # as a model's parser does
    new, x = plain(module), torch.randn(3, 5) if kind is nn.LSTMCell else torch.randn(3, 2, 5)
    inherit_from(new, module)
    assert new.f == -1
    for twin in (copy.deepcopy(new), pickle.loads(pickle.dumps(new))):
        close(twin(x), module(x))


def test_weights_that_a_hook_recomputes_are_brought_up_to_date_first() -> None:
    torch.manual_seed(0)
    with pytest.warns(FutureWarning):
        module = nn.utils.weight_norm(nn.LSTM(5, 6), "weight_hh_l0")
    x = torch.randn(3, 2, 5)
    module(x)
    with torch.no_grad():
        module.weight_hh_l0_g *= 2
    form = plain_form(module)
    assert form is not None and form.module is not None
    assert form.spent_hooks == frozenset(module._forward_pre_hooks)
    close(form.module(x), module(x))


def test_parametrized_weights_are_taken_as_they_are_in_effect() -> None:
    module, x = nn.GRU(5, 6), torch.randn(3, 2, 5)
    nn.utils.parametrizations.weight_norm(module, "weight_ih_l0")
    with torch.no_grad():
        module.parametrizations.weight_ih_l0.original0 *= 2
    close(plain(module)(x), module(x))
