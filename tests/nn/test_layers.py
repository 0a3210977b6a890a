"""QuantLinear and QuantConv2d as drop-in layers."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, multiprocessing, nn

from qkernels.nn import QuantConv2d, QuantLinear, QuantModule, quantize_weight

STATIC: dict[str, Any] = {"activation": "static", "input_scale": 0.03, "input_zero_point": 2}
LINEAR_KINDS = [{"activation": "dynamic"}, {"activation": "weight_only"}, STATIC]
CONV_KINDS = [{"activation": "dynamic"}, {"activation": "dynamic", "symmetric": False}, STATIC]
CONVS: list[dict[str, Any]] = [
    {"in_channels": 6, "out_channels": 8, "kernel_size": 3, "padding": 1},
    {"in_channels": 6, "out_channels": 9, "kernel_size": (3, 2), "stride": (2, 1), "groups": 3},
    {"in_channels": 6, "out_channels": 6, "kernel_size": 5, "padding": "same", "groups": 6},
    {"in_channels": 6, "out_channels": 4, "kernel_size": 3, "padding": "valid", "dilation": 2},
    {"in_channels": 6, "out_channels": 4, "kernel_size": 1, "stride": 2, "bias": False},
    {
        "in_channels": 6,
        "out_channels": 4,
        "kernel_size": 3,
        "padding": 2,
        "padding_mode": "reflect",
    },
]


def sqnr(y: Tensor, exact: Tensor) -> float:
    y, exact = y.detach().float(), exact.detach().float()
    noise = (y - exact).norm()
    return float(20 * torch.log10(exact.norm() / noise))


def linear(**kind: Any) -> QuantLinear:
    torch.manual_seed(0)
    return QuantLinear.from_float(nn.Linear(37, 21), **kind)


def conv(**kind: Any) -> QuantConv2d:
    torch.manual_seed(0)
    return QuantConv2d.from_float(nn.Conv2d(6, 8, 3, padding=1), **kind)


def layers() -> list[tuple[QuantModule, Tensor]]:
    x, image = torch.randn(5, 37), torch.randn(2, 6, 9, 8)
    return [(linear(**k), x) for k in LINEAR_KINDS] + [(conv(**k), image) for k in CONV_KINDS]


@pytest.mark.parametrize("kind", LINEAR_KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_linear_is_close_to_float_in_every_dtype(kind: dict[str, Any], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 32), torch.randn(4, 3, 64)
    y = QuantLinear.from_float(layer, **kind)(x.to(dtype))
    assert y.dtype == dtype
    assert y.shape == (4, 3, 32)
    assert sqnr(y, layer(x)) > 30


@pytest.mark.parametrize("options", CONVS)
@pytest.mark.parametrize("kind", CONV_KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_conv_is_close_to_float(
    options: dict[str, Any], kind: dict[str, Any], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    layer, x = nn.Conv2d(**options), torch.randn(2, 6, 11, 10)
    y = QuantConv2d.from_float(layer, **kind)(x.to(dtype))
    assert y.dtype == dtype
    assert y.shape == layer(x).shape
    assert sqnr(y, layer(x)) > 28


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_conv_keeps_the_memory_format(dtype: torch.dtype) -> None:
    layer, x = conv(), torch.randn(2, 6, 9, 8, dtype=dtype)
    plain, last = layer(x), layer(x.to(memory_format=torch.channels_last))
    assert plain.is_contiguous()
    assert plain.view(2, -1).shape == (2, 8 * 72)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, last)


@pytest.mark.parametrize("kind", LINEAR_KINDS)
def test_linear_takes_any_strides(kind: dict[str, Any]) -> None:
    layer = linear(**kind)
    wide = torch.randn(6, 80)
    for x in (
        wide[:, 3:40],
        wide[::2, :37],
        torch.randn(37, 5).T,
        torch.randn(1, 37).expand(4, 37),
    ):
        assert torch.equal(layer(x), layer(x.contiguous()))
    assert torch.equal(layer(wide[0, :37]), layer(wide[:1, :37])[0])


@pytest.mark.parametrize("kind", CONV_KINDS)
def test_conv_takes_any_strides(kind: dict[str, Any]) -> None:
    layer, big = conv(**kind), torch.randn(3, 12, 20, 18)
    views = (
        big[:, ::2, 2:12, 3:15],
        big[:, :6, ::2, ::2],
        big[:2, :6].transpose(2, 3),
        big[:, :1, :8, :8].expand(3, 6, 8, 8),
        big.to(memory_format=torch.channels_last)[:, 2:8, 1:9],
    )
    for x in views:
        assert torch.equal(layer(x), layer(x.contiguous()))
    assert torch.equal(layer(views[0][0]), layer(views[0][:1])[0])


def test_a_batch_never_changes_a_member_s_result() -> None:
    for layer, x in layers():
        assert torch.equal(layer(x)[1:2], layer(x[1:2]))


def test_empty_batches_pass() -> None:
    for layer, x in layers():
        assert layer(x[:0]).shape == (0, *layer(x).shape[1:])


def test_copies_give_the_same_bits() -> None:
    for layer, x in layers():
        stored = io.BytesIO()
        torch.save(layer, stored)
        stored.seek(0)
        loaded = torch.load(stored, weights_only=False)
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
            assert torch.equal(other(x), layer(x))


def _child(layer: nn.Module, x: Tensor, queue: Any) -> None:
    queue.put(layer(x).tolist())


def test_a_spawned_process_shares_the_layer() -> None:
    layer, x = conv().share_memory(), torch.randn(1, 6, 4, 4)
    assert layer.packed_weight.is_shared()
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=_child, args=(layer, x, queue))
    process.start()
    answer = queue.get()
    process.join(60)
    assert answer == layer(x).tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_casting_a_model_leaves_scales_and_bits(dtype: torch.dtype) -> None:
    for layer, x in layers():
        expected = layer(x)
        cast = copy.deepcopy(layer).to(dtype)
        assert cast.weight_scale.dtype == torch.float32
        assert torch.equal(cast(x), expected)


def test_a_state_dict_is_canonical_and_gives_the_same_bits() -> None:
    for layer, x in layers():
        state = layer.state_dict()
        static = layer.activation == "static"
        names = {"int8_weight", "weight_scale", "bias"} | (
            {"input_scale", "input_zero_point"} if static else set()
        )
        assert set(state) == names
        assert state["int8_weight"].dtype == torch.int8
        assert tuple(state["int8_weight"].shape) == tuple(layer.weight_size)
        empty = type(layer).from_scheme(layer.scheme())
        empty.load_state_dict(state, strict=True)
        assert torch.equal(empty(x), layer(x))


def test_a_layer_built_on_meta_takes_its_tensors() -> None:
    for layer, x in layers():
        with torch.device("meta"):
            empty = type(layer).from_scheme(layer.scheme())
        empty.load_state_dict(layer.state_dict(), strict=True, assign=True)
        assert torch.equal(empty(x), layer(x))


def test_a_float_weight_in_a_state_dict_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"weight is torch.float32.*int8 \[21, 37\]"):
        linear().load_state_dict(nn.Linear(37, 21).state_dict(), strict=False)


def test_no_float_copy_of_the_weight_is_kept() -> None:
    for layer, _ in layers():
        assert sum(p.numel() for p in layer.parameters()) == 0
        floats = [b for b in layer.buffers() if b.is_floating_point()]
        assert max(b.numel() for b in floats) <= layer.weight_size[0]
        assert layer.packed_weight.dtype == torch.int8


@pytest.mark.parametrize("kind", LINEAR_KINDS)
@pytest.mark.parametrize("wrap", [Tensor.clone, nn.Parameter])
def test_an_assigned_bias_is_the_one_used(kind: dict[str, Any], wrap: Any) -> None:
    layer, x = linear(**kind), torch.randn(3, 37)
    layer.bias = None
    product = layer(x)
    layer.bias = wrap(torch.full((21,), 2.0))
    torch.testing.assert_close(layer(x), product + 2)
    assert "bias" in layer.state_dict() and "bias" not in dict(layer.named_parameters())


def test_train_mode_changes_nothing() -> None:
    for layer, x in layers():
        assert torch.equal(copy.deepcopy(layer).train()(x), layer(x))


def test_repr_tells_the_scheme() -> None:
    assert "static int8 activations (scale=0.03, zero_point=2)" in repr(linear(**STATIC))
    assert "dynamic asymmetric" in repr(conv(symmetric=False))
    assert "float activations" in repr(linear(activation="weight_only"))


def test_attributes_and_arguments_are_those_of_torch() -> None:
    args: dict[str, Any] = {"kernel_size": (3, 5), "stride": 2, "padding": (1, 2), "groups": 2}
    layer, exact = QuantConv2d(4, 6, **args), nn.Conv2d(4, 6, **args)
    for name in ("in_channels", "out_channels", "stride", "padding", "dilation", "groups"):
        assert getattr(layer, name) == getattr(exact, name), name
    assert layer.kernel_size == exact.kernel_size
    assert tuple(layer.weight.shape) == tuple(exact.weight.shape)
    assert QuantLinear(4, 6, False).bias is None


@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_are_quantized_to_half_a_step(per_channel: bool) -> None:
    weight = torch.randn(8, 3, 3, 3) * torch.logspace(-3, 2, 8).view(-1, 1, 1, 1)
    q, scale = quantize_weight(weight, per_channel=per_channel)
    step = scale.view(-1, 1, 1, 1)
    assert q.min() >= -127
    assert ((q * step - weight).abs() <= step * 0.5001).all()
    assert per_channel or len(scale.unique()) == 1


def float_layer(value: float = 1.0) -> nn.Linear:
    layer = nn.Linear(3, 2)
    nn.init.constant_(layer.weight, value)
    return layer


BAD: list[tuple[Any, str]] = [
    (lambda: QuantLinear.from_float(float_layer(float("nan"))), "6 NaN or infinite"),
    (lambda: QuantLinear.from_float(float_layer(), activation="static"), "calibration"),
    (lambda: QuantLinear.from_float(float_layer(), input_scale=1.0), "for static"),
    (lambda: QuantLinear(3, 2, activation="sometimes"), "sometimes"),  # type: ignore[arg-type]
    (lambda: linear(**{**STATIC, "input_scale": 0.0}), "input scale is 0"),
    (lambda: linear(**{**STATIC, "input_scale": float("inf")}), "input scale is inf"),
    (lambda: linear(**{**STATIC, "input_zero_point": -129}), "-129"),
    (lambda: linear(weight=(torch.ones(2, 2), torch.ones(2))), "int8"),
    (lambda: conv(activation="weight_only"), "weight_only"),
    (lambda: QuantConv2d(6, 8, 3, groups=4), "groups=4"),
    (lambda: QuantConv2d(6, 8, 3, padding="full"), "full"),
    (lambda: quantize_weight(torch.ones(2, 2), scale=torch.tensor([1.0, -2.0])), "-2"),
]


@pytest.mark.parametrize("case", range(len(BAD)))
def test_bad_arguments_get_a_sentence_that_names_them(case: int) -> None:
    build, text = BAD[case]
    with pytest.raises(ValueError, match=text):
        build()


def test_a_wrong_input_shape_is_told_apart() -> None:
    with pytest.raises(RuntimeError, match=r"\[N, 6, H, W\].*\[2, 5, 4, 4\]"):
        conv()(torch.randn(2, 5, 4, 4))
    for kind in LINEAR_KINDS:
        with pytest.raises(RuntimeError, match=r"\[\.\.\., 37\]; its input is \[2, 36\]"):
            linear(**kind)(torch.randn(2, 36))
