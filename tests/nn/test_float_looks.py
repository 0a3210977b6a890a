"""What code around an int8 layer reads of it: the float layer's weight, bias, parameters and class."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import qkernels as qk
from qkernels.nn import QuantConv2d, QuantLinear

STATIC: dict[str, Any] = {"activation": "static", "input_scale": 0.03, "input_zero_point": 2}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def pairs(dtype: torch.dtype = torch.float32) -> list[tuple[nn.Module, Any, Tensor]]:
    """(float layer, int8 layer, input)"""
    torch.manual_seed(0)
    linear, conv = nn.Linear(12, 7, dtype=dtype), nn.Conv2d(4, 6, 3, groups=2, dtype=dtype)
    rows, images = torch.randn(5, 12).to(dtype), torch.randn(2, 4, 6, 6).to(dtype)
    return [
        (linear, QuantLinear.from_float(linear), rows),
        (linear, QuantLinear.from_float(linear, **STATIC), rows),
        (linear, QuantLinear.from_float(linear, activation="weight_only"), rows),
        (conv, QuantConv2d.from_float(conv), images),
    ]


def error(y: Tensor, exact: Tensor) -> float:
    y, exact = y.detach().float(), exact.detach().float()
    return float((y - exact).norm() / exact.norm())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_weight_and_bias_have_the_float_layers_dtype_shape_and_values(dtype: torch.dtype) -> None:
    for layer, int8, _ in pairs(dtype):
        for ours, theirs in ((int8.weight, layer.weight), (int8.bias, layer.bias)):
            assert (ours.dtype, ours.shape, ours.device) == (dtype, theirs.shape, theirs.device)
            assert error(ours, theirs) < 0.01
        assert not int8.weight.requires_grad


class Patches(nn.Module):
    """Casts its input to the dtype of its layer's weight, as ViT, CLIP and LoRA do."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, 16, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x.to(self.proj.weight.dtype))


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
def test_an_input_cast_to_the_weights_dtype_is_not_truncated_to_codes(scheme: str) -> None:
    torch.manual_seed(0)
    model, x = Patches().eval(), torch.randn(2, 3, 16, 16)
    int8 = qk.quantize(model, scheme, [x])
    assert error(int8(x), model(x)) < 0.02


READS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "tied decoder": lambda m, x: F.linear(x, m.weight),
    "tied decoder with a bias": lambda m, x: F.linear(x, m.weight, m.bias),
    "keywords": lambda m, x: F.linear(input=x, weight=m.weight),
    "cosine head": lambda m, x: F.linear(F.normalize(x), F.normalize(m.weight)),
    "transposed": lambda m, x: x @ m.weight.T,
    "norm": lambda m, x: m.weight.norm(dim=1),
    "slice": lambda m, x: m.weight[2:5],
    "data": lambda m, x: m.weight.data + 1,
    "concatenated": lambda m, x: torch.cat([m.weight, m.weight]),
    "numpy": lambda m, x: torch.from_numpy(m.weight.detach().numpy()),
    "cast": lambda m, x: m.weight.to(torch.float64),
    "like it": lambda m, x: torch.zeros_like(m.weight) + 1,
    "contiguous view": lambda m, x: m.weight.view(-1),
}


@pytest.mark.parametrize("read", READS)
def test_whoever_reads_the_weight_gets_the_float_values(read: str) -> None:
    layer, int8, x = pairs()[0]
    with torch.no_grad():
        expected, got = READS[read](layer, x), READS[read](int8, x)
    assert type(got) is Tensor
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
    assert error(got, expected) < 0.01


WRITES: dict[str, Callable[[Any], object]] = {
    "in place": lambda m: m.weight.mul_(2),
    "data in place": lambda m: m.weight.data.zero_(),
    "init": lambda m: nn.init.normal_(m.weight),
    "item": lambda m: m.weight.__setitem__(0, 1.0),
    "out": lambda m: torch.add(m.weight, 1, out=m.weight),
    "copy": lambda m: m.weight.copy_(torch.ones(m.weight.shape)),
    "reset": lambda m: m.reset_parameters(),
}


@pytest.mark.parametrize("write", WRITES)
def test_a_write_to_the_weight_is_refused_instead_of_lost(write: str) -> None:
    for _, int8, x in pairs():
        before = int8(x)
        with torch.no_grad(), pytest.raises(RuntimeError, match="convert"):
            WRITES[write](int8)
        assert torch.equal(int8(x), before)


def test_a_weight_is_tied_by_assignment_and_a_float_one_is_refused() -> None:
    (_, one, x), (_, other, _) = pairs()[0], pairs()[2]
    torch.manual_seed(1)
    third = QuantLinear.from_float(nn.Linear(12, 7), activation="dynamic")
    third.weight = one.weight
    assert third.packed_weight is one.packed_weight
    third.bias = one.bias
    assert torch.equal(third(x), one(x))
    with pytest.raises(TypeError, match="Parameter"):
        other.weight = nn.Parameter(torch.ones(7, 12))


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.uint8])
def test_a_module_refuses_codes_which_only_operators_take(dtype: torch.dtype) -> None:
    for _, int8, x in pairs():
        with pytest.raises(TypeError, match=str(dtype)):
            int8(x.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_parameters_answer_for_dtype_and_device_of_a_wholly_converted_model(
    dtype: torch.dtype,
) -> None:
    for _, int8, _ in pairs(dtype):
        assert next(int8.parameters()).dtype == dtype
        assert next(int8.to(torch.float32).parameters()).dtype == torch.float32
        assert "anchor" not in int8.state_dict()


def test_an_int8_layer_is_an_instance_of_its_float_class() -> None:
    for layer, int8, _ in pairs():
        assert isinstance(int8, type(layer))


def test_a_state_dict_holds_no_codes_under_a_float_layers_name() -> None:
    for layer, int8, _ in pairs():
        missing, unexpected = copy.deepcopy(layer).load_state_dict(int8.state_dict(), strict=False)
        assert missing == ["weight"]
        assert "int8_weight" in unexpected


def test_a_state_dict_of_the_first_format_still_loads() -> None:
    for _, int8, x in pairs():
        state = int8.state_dict()
        state["weight"] = state.pop("int8_weight")
        empty = type(int8).from_scheme(int8.scheme())
        empty.load_state_dict(state)
        assert torch.equal(empty(x), int8(x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_default_dtype_does_not_leak_into_scales(dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    try:
        layers = [QuantLinear(4, 3), QuantConv2d(3, 4, 1), QuantLinear(4, 3, activation="static")]
    finally:
        torch.set_default_dtype(torch.float32)
    for layer in layers:
        assert layer.weight.dtype == dtype
        assert {b.dtype for b in layer.buffers() if b.is_floating_point()} == {torch.float32}
        layer(torch.ones(2, 4) if isinstance(layer, nn.Linear) else torch.ones(2, 3, 2, 2))


def test_codes_are_replaced_by_assignment() -> None:
    layer, int8, x = pairs()[0]
    int8.int8_weight = -int8.int8_weight
    int8.bias = None
    with torch.no_grad():
        assert error(int8(x), -F.linear(x, layer.weight)) < 0.02


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 40), k=st.integers(1, 70), m=st.integers(0, 5))
def test_a_product_with_the_weight_is_that_of_the_layer(n: int, k: int, m: int) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(k, n), torch.randn(m, k)
    for scheme in ("static", "dynamic", "weight_only"):
        qparams = {"input_scale": 0.02, "input_zero_point": 3} if scheme == "static" else {}
        int8 = QuantLinear.from_float(layer, activation=scheme, **qparams)
        assert torch.equal(F.linear(x, int8.weight, layer.bias), int8(x))
        moved = F.linear(x, int8.weight, layer.bias + 1)
        int8.bias = layer.bias + 1
        assert torch.equal(moved, int8(x))


class Tied(nn.Module):
    def __init__(self, int8: nn.Module) -> None:
        super().__init__()
        self.head = int8

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x.to(self.head.weight.dtype))
        return F.linear(y, self.head.weight.T.contiguous()) + self.head.weight.shape[0]


def test_a_forward_that_reads_the_weight_is_exported_and_compiled() -> None:
    _, int8, x = pairs()[0]
    model = Tied(int8).eval()
    exported = torch.export.export(model, (x,), strict=False).module()
    assert torch.equal(exported(x), model(x))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert error(compiled(x), model(x)) < 1e-6


def test_a_copied_or_pickled_weight_is_a_plain_tensor() -> None:
    layer, int8, _ = pairs()[0]
    for weight in (copy.deepcopy(int8.weight), pickle.loads(pickle.dumps(int8.weight))):
        assert type(weight) is Tensor
        assert error(weight, layer.weight) < 0.01


class Asking(nn.Module):
    """A hidden layer and a head, whose forward is `ask`."""

    def __init__(self, ask: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(12, 12), nn.Linear(12, 8, bias=False)
        self.ask = ask

    def forward(self, x: Tensor) -> Tensor:
        return self.ask(self, x)


def placed(m: Any, x: Tensor) -> Tensor:
    if m.fc.weight.is_cuda or m.fc.weight.device.type == "cuda":
        x = x.cuda()
    return m.head(m.fc(x.to(device=m.fc.weight.device, dtype=m.fc.weight.dtype)))


def memory(m: Any, x: Tensor) -> Tensor:
    state = m.fc.weight.new_zeros(x.shape[0], m.fc.weight.size(0))
    return m.head(m.fc(x) + state + m.fc.weight.new_tensor([1.0]))


def cosine(m: Any, x: Tensor) -> Tensor:
    return F.cosine_similarity(m.fc(x)[:, None], m.head.weight[None], dim=-1)


def weight_scaled(m: Any, x: Tensor) -> Tensor:
    return F.linear(m.fc(x), m.head.weight * m.head.weight.shape[1] ** -0.5, m.head.bias)


FORWARDS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "device and is_cuda": placed,
    "first parameter": lambda m, x: m.head(m.fc(x.to(next(m.parameters()).dtype))),
    "all parameters": lambda m, x: m.head(m.fc(x.to({p.dtype for p in m.parameters()}.pop()))),
    "counted": lambda m, x: m.head(m.fc(x)) / m.head.weight.numel(),
    "length": lambda m, x: m.head(m.fc(x)) / len(m.head.weight),
    "new_zeros and new_tensor": memory,
    "cosine similarity": cosine,
    "scaled weight": weight_scaled,
    "transposed": lambda m, x: m.fc(x) @ m.head.weight.T,
    "mT": lambda m, x: m.fc(x) @ m.head.weight.mT,
    "t": lambda m, x: torch.mm(m.fc(x), m.head.weight.t()),
    "einsum": lambda m, x: torch.einsum("nk,ok->no", m.fc(x), m.head.weight),
    "addmm": lambda m, x: m.head(torch.addmm(m.fc.bias, x, m.fc.weight.t())),
    "matmul operator": lambda m, x: (m.head.weight @ m.fc(x).T).T,
    "split": lambda m, x: torch.cat([F.linear(m.fc(x), w) for w in m.head.weight.chunk(2)], 1),
    "iterated": lambda m, x: torch.stack([m.fc(x) @ row for row in m.head.weight], 1),
    "unpacked": lambda m, x: m.head(m.fc(x)) + sum(w.sum() for w in m.fc.weight.unbind(0)),
    "float": lambda m, x: F.linear(m.fc(x).float(), m.head.weight.float()).type_as(m.head.weight),
    "tied autoencoder": lambda m, x: F.linear(m.fc(x), m.fc.weight.t()),
    "bias moved": lambda m, x: m.head(F.linear(x, m.fc.weight) + m.fc.bias),
    "weight decay": lambda m, x: m.head(m.fc(x)) + 1e-2 * (m.fc.weight**2).sum(),
}  # fmt: skip


@pytest.mark.parametrize("scheme", ["static", "dynamic", "weight_only"])
@pytest.mark.parametrize("ask", FORWARDS)
def test_a_forward_that_asks_a_layer_about_its_weight_stays_right(ask: str, scheme: str) -> None:
    torch.manual_seed(0)
    model, x = Asking(FORWARDS[ask]).eval(), torch.randn(16, 12)
    int8 = qk.quantize(model, scheme, [x])
    with torch.no_grad():
        expected = model(x)
        assert int8(x).dtype == expected.dtype
        assert error(int8(x), expected) < 0.03


def test_a_convolutions_weight_read_outside_of_its_call_stays_right() -> None:
    class Unfolded(Patches):
        def forward(self, x: Tensor) -> Tensor:
            rows = F.unfold(x, self.proj.weight.shape[2:], stride=self.proj.stride)
            product = self.proj.weight.flatten(1) @ rows
            return product.unflatten(2, (4, 4)) + self.proj.bias[:, None, None]

    torch.manual_seed(0)
    model, x = Unfolded().eval(), torch.randn(2, 3, 16, 16)
    int8 = qk.quantize(model, "dynamic")
    with torch.no_grad():
        assert error(int8(x), model(x)) < 0.02


def test_tools_over_parameters_answer_for_an_int8_model() -> None:
    model = Asking(FORWARDS["first parameter"]).eval()
    int8 = qk.quantize(model, "dynamic")
    vector = nn.utils.parameters_to_vector(int8.parameters())
    assert (vector.dtype, vector.device) == (torch.float32, torch.device("cpu"))
    assert not any(p.requires_grad for p in int8.parameters())
    int8.requires_grad_(True).zero_grad()
    assert len(int8.fc.weight) == 12
    assert int8.fc.weight.requires_grad is False
    for text in (repr(int8.fc.weight), str(int8), f"{int8.fc.weight.shape}"):
        assert "12" in text or "tensor" in text


def test_questions_about_a_weight_never_unpack_it(monkeypatch: pytest.MonkeyPatch) -> None:
    _, int8, _ = pairs()[0]

    def unpacked(*_: object) -> Tensor:
        raise AssertionError("the weight was unpacked for a question about its form")

    monkeypatch.setattr(type(int8), "dequantize_weight", unpacked)
    for ask in (
        lambda w: (w.dtype, w.shape, w.device, w.ndim, w.numel(), w.size(0), w.dim(), len(w), w.is_cuda),
        lambda w: (w.requires_grad, w.is_floating_point(), w.element_size(), w.stride(), w.is_contiguous(), w.is_meta),
        lambda w: (torch.is_floating_point(w), torch.numel(w), torch.is_complex(w), torch.is_tensor(w)),
        lambda w: (w.new_zeros(2, 3).shape, w.new_empty(2).dtype, w.new_tensor([1.0]), w.new_full((2,), 3.0)),
        lambda w: (torch.zeros_like(w).shape, torch.empty_like(w).dtype, torch.ones_like(w).device),
        lambda w: (w.is_sparse, w.layout, w.data.dtype, w.detach().shape, w.is_mps, w.is_inference()),
    ):  # fmt: skip
        ask(int8.weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_casts_of_an_int8_model_follow_its_activations(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = Asking(FORWARDS["first parameter"]).eval(), torch.randn(16, 12)
    expected = model(x)
    int8 = qk.quantize(model, "dynamic")
    with torch.autocast("cpu", dtype):
        assert error(int8(x), expected) < 0.03
    cast = int8.to(dtype)
    assert cast(x).dtype == dtype
    assert error(cast(x), expected) < 0.05
