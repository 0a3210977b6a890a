"""QuantConv1d, QuantConv3d and the transposed convolutions, as drop-in layers and to the bit."""

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

from qkernels import ops, reference
from qkernels.nn.conv1d import QuantConv1d
from qkernels.nn.conv3d import QuantConv3d
from qkernels.nn.conv_transpose import QuantConvTranspose1d, QuantConvTranspose2d
from qkernels.nn.convolution import QuantConvolution

STATIC: dict[str, Any] = {"activation": "static", "input_scale": 0.03, "input_zero_point": 2}
SCHEMES = [{}, {"symmetric": False}, STATIC]
PAIRS: dict[type[nn.Module], type[QuantConvolution]] = {
    nn.Conv1d: QuantConv1d,
    nn.Conv3d: QuantConv3d,
    nn.ConvTranspose1d: QuantConvTranspose1d,
    nn.ConvTranspose2d: QuantConvTranspose2d,
}
FORWARD = {
    nn.Conv1d: F.conv1d,
    nn.Conv3d: F.conv3d,
    nn.ConvTranspose1d: F.conv_transpose1d,
    nn.ConvTranspose2d: F.conv_transpose2d,
}


def codes_of(layer: QuantConvolution, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scale and zero point of a batch as the contract makes them, ready to broadcast."""
    flat = x.float().flatten(1)
    if layer.input_scale is None:
        scale, zero = reference.dynamic_scale(flat, symmetric=layer.symmetric)
    else:
        scale, zero = layer.input_scale.view(1), layer.input_zero_point.view(1)
    shape = (-1, *[1] * (x.dim() - 1))
    return reference.quantize(flat, scale, zero).view(x.shape), scale.view(shape), zero.view(shape)


def exact(conv: Any, layer: QuantConvolution, x: Tensor, *size: Any) -> Tensor:
    """The int32 sums by torch's own convolution in float64, then the epilogue of the contract."""
    codes, scale, zero = codes_of(layer, x)
    integers = copy.deepcopy(conv).double()
    integers.weight = nn.Parameter(layer.int8_weight.double())
    integers.bias = None
    with torch.no_grad():
        total = integers((codes.int() - zero).double(), *size)
    wide = (1, -1, *[1] * (x.dim() - 2))
    bias = torch.zeros(1) if layer.bias is None else layer._buffers["bias"].view(wide)
    return reference.fma(total.float(), scale * layer.weight_scale.view(wide), bias).to(x.dtype)


def made(kind: type[nn.Module], config: dict[str, Any], scheme: dict[str, Any]) -> tuple[Any, Any]:
    conv: Any = kind(**config)
    return conv, PAIRS[kind].from_float(conv, **scheme)


def geometry(dims: int, transposed: bool) -> Any:
    fields: dict[str, Any] = {
        "kernel_size": st.tuples(*[st.integers(1, 4)] * dims),
        "stride": st.tuples(*[st.integers(1, 3)] * dims),
        "dilation": st.tuples(*[st.integers(1, 3)] * dims),
        "groups": st.sampled_from([1, 2, 4]),
        "bias": st.booleans(),
        "padding": st.tuples(*[st.integers(0, 3)] * dims),
    }
    if not transposed:
        fields["padding_mode"] = st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"])  # fmt: skip
    return st.fixed_dictionaries(fields)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([nn.Conv1d, nn.Conv3d]).flatmap(
        lambda kind: st.tuples(st.just(kind), geometry(1 if kind is nn.Conv1d else 3, False))
    ),
    st.sampled_from(SCHEMES), st.integers(1, 3), st.integers(0, 4), st.integers(0, 99),
)  # fmt: skip
def test_a_convolution_gives_the_bits_of_the_integer_reference(
    case: tuple[Any, dict[str, Any]], scheme: dict[str, Any], n: int, more: int, seed: int
) -> None:
    torch.manual_seed(seed)
    kind, config = case
    conv, layer = made(kind, {"in_channels": 4, "out_channels": 8, **config}, scheme)
    spans = [max(d * (k - 1) + 1 - 2 * p, p + 1, 1) + more for d, k, p in zip(
        config["dilation"], config["kernel_size"], config["padding"], strict=True)]  # fmt: skip
    x = torch.randn(n, 4, *spans)
    assert torch.equal(layer(x), exact(conv, layer, x))


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([nn.ConvTranspose1d, nn.ConvTranspose2d]).flatmap(
        lambda kind: st.tuples(st.just(kind), geometry(1 if kind is nn.ConvTranspose1d else 2, True))
    ),
    st.sampled_from(SCHEMES), st.integers(1, 3), st.data(), st.integers(0, 99),
)  # fmt: skip
def test_a_transposed_convolution_gives_the_bits_of_the_integer_reference(
    case: tuple[Any, dict[str, Any]], scheme: dict[str, Any], n: int, data: Any, seed: int
) -> None:
    torch.manual_seed(seed)
    kind, config = case
    axes = list(zip(*(config[f] for f in ("kernel_size", "stride", "dilation", "padding")), strict=True))  # fmt: skip
    config["output_padding"] = [data.draw(st.integers(0, max(s, d) - 1)) for _, s, d, _ in axes]
    conv, layer = made(kind, {"in_channels": 4, "out_channels": 8, **config}, scheme)
    sizes = [data.draw(st.integers(1, 5)) for _ in axes]
    sides = [
        (size - 1) * s - 2 * p + d * (k - 1) + more + 1
        for size, more, (k, s, d, p) in zip(sizes, config["output_padding"], axes, strict=True)
    ]
    x = torch.randn(n, 4, *sizes)
    if min(sides) < 1:
        with pytest.raises(RuntimeError):
            layer(x)
        return
    y = layer(x)
    assert list(y.shape[2:]) == sides and y.is_contiguous()
    assert torch.equal(y, exact(conv, layer, x))


EXAMPLES: list[tuple[type[nn.Module], dict[str, Any], tuple[int, ...]]] = [
    (nn.Conv1d, {"kernel_size": 5, "padding": "same"}, (17,)),
    (nn.Conv1d, {"kernel_size": 3, "stride": 2, "groups": 2}, (12,)),
    (nn.Conv1d, {"kernel_size": 4, "padding": "valid", "groups": 4, "bias": False}, (9,)),
    (nn.Conv3d, {"kernel_size": 3, "padding": 1}, (5, 6, 7)),
    (nn.Conv3d, {"kernel_size": (3, 1, 1), "padding": "same", "groups": 4}, (4, 3, 3)),
    (nn.ConvTranspose1d, {"kernel_size": 16, "stride": 8, "padding": 4}, (6,)),
    (nn.ConvTranspose2d, {"kernel_size": 2, "stride": 2}, (5, 4)),
    (nn.ConvTranspose2d, {"kernel_size": 4, "stride": 2, "padding": 1, "groups": 2}, (5, 4)),
    (nn.ConvTranspose2d, {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1}, (4, 6)),
]  # fmt: skip


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_every_layer_is_its_float_layer_on_rounded_input_and_weight(
    number: int, dtype: torch.dtype, scheme: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    kind, config, sides = EXAMPLES[number]
    conv, layer = made(kind, {"in_channels": 8, "out_channels": 12, **config}, scheme)
    x = torch.randn(2, 8, *sides).to(dtype)
    codes, scale, zero = codes_of(layer, x)
    conv.weight = nn.Parameter(layer.dequantize_weight().float())
    expected = conv((codes.int() - zero) * scale)
    y = layer(x)
    assert y.dtype == dtype and y.shape == expected.shape
    noise = (y.float() - expected).norm() / expected.norm()
    assert noise < {torch.float32: 1e-3, torch.float16: 1e-3, torch.bfloat16: 5e-3}[dtype]


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_a_sample_without_a_batch_axis_and_a_batch_give_the_same(number: int) -> None:
    torch.manual_seed(0)
    kind, config, sides = EXAMPLES[number]
    _, layer = made(kind, {"in_channels": 8, "out_channels": 12, **config}, {})
    x = torch.randn(3, 8, *sides) * torch.tensor([1.0, 10.0, 0.1]).view(3, *[1] * (len(sides) + 1))
    batch = layer(x)
    for sample, y in zip(x, batch, strict=True):
        assert torch.equal(layer(sample), y)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_layers_look_like_their_float_class_and_are_rebuilt_from_scheme_and_state(
    number: int,
) -> None:
    torch.manual_seed(0)
    kind, config, sides = EXAMPLES[number]
    conv, layer = made(kind, {"in_channels": 8, "out_channels": 12, **config}, STATIC)
    assert isinstance(layer, kind)
    assert layer.weight.shape == conv.weight.shape
    assert float((layer.weight - conv.weight.detach()).norm() / conv.weight.detach().norm()) < 0.01
    for name in ("stride", "padding", "dilation", "groups", "kernel_size", "output_padding", "transposed"):  # fmt: skip
        assert getattr(layer, name) == getattr(conv, name)
    assert repr(conv)[repr(conv).index("(") + 1 : -1] in repr(layer)
    with torch.device("meta"):
        empty = type(layer).from_scheme(json.loads(json.dumps(layer.scheme())))
    empty.load_state_dict(layer.state_dict(), assign=True)
    x = torch.randn(2, 8, *sides)
    expected = layer(x)
    copies = [empty, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    for other in copies:
        assert torch.equal(other(x), expected)
        assert torch.equal(other.int8_weight, layer.int8_weight)


@pytest.mark.parametrize("kind", PAIRS)
def test_codes_come_back_from_the_packed_layout(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    conv: Any = kind(6, 9, 3, stride=2, groups=3)
    layer = PAIRS[kind].from_float(conv)
    codes = torch.randint(-127, 128, layer.weight_size, dtype=torch.int8)
    layer.int8_weight = codes
    assert torch.equal(layer.int8_weight, codes)


def test_one_scale_is_that_of_one_output_channel() -> None:
    conv = nn.ConvTranspose2d(4, 6, 3, groups=2)
    with torch.no_grad():
        conv.weight[2:, 1] *= 100  # output channel 4: the second of the second group
    scale = QuantConvTranspose2d.from_float(conv).weight_scale
    assert int(scale.argmax()) == 4 and float(scale.max() / scale.median()) > 20


@pytest.mark.parametrize("size", [[9, 7], [10, 8], [2, 6, 10, 7]])
def test_an_output_size_is_honored(size: list[int]) -> None:
    conv = nn.ConvTranspose2d(4, 6, 3, 2, 1)
    layer, x = QuantConvTranspose2d.from_float(conv), torch.randn(2, 4, 5, 4)
    y = layer(x, output_size=size)
    assert list(y.shape[-2:]) == size[-2:]
    assert torch.equal(y, exact(conv, layer, x, size))


def test_an_output_size_that_the_stride_cannot_reach_is_refused() -> None:
    layer = QuantConvTranspose1d.from_float(nn.ConvTranspose1d(4, 6, 3, 2, 1))
    with pytest.raises(ValueError, match="requested an output size"):
        layer(torch.randn(2, 4, 5), output_size=[11])


def test_layouts_follow_the_input() -> None:
    images = torch.randn(2, 4, 5, 6).contiguous(memory_format=torch.channels_last)
    up = QuantConvTranspose2d.from_float(nn.ConvTranspose2d(4, 6, 3, 2))
    assert up(images).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(up(images), up(images.contiguous()))
    rows = torch.randn(2, 9, 4).transpose(1, 2)
    line = QuantConv1d.from_float(nn.Conv1d(4, 6, 3))
    assert line(rows).transpose(1, 2).is_contiguous()
    assert torch.equal(line(rows), line(rows.contiguous()))
    video = torch.randn(2, 4, 3, 5, 6).contiguous(memory_format=torch.channels_last_3d)
    cube = QuantConv3d.from_float(nn.Conv3d(4, 6, 3, padding=1))
    assert torch.equal(cube(video), cube(video.contiguous()))


@pytest.mark.parametrize("kind", PAIRS)
def test_inputs_that_do_not_fit_are_refused_in_one_sentence(kind: type[nn.Module]) -> None:
    layer = PAIRS[kind].from_float(kind(4, 6, 3))
    dims = layer.DIMENSIONS
    with pytest.raises(RuntimeError, match=r"takes \[N, 4, .*its input is \[2, 5"):
        layer(torch.randn(2, 5, *[8] * dims))
    with pytest.raises(RuntimeError, match="its input is"):
        layer(torch.randn(8))
    with pytest.raises(TypeError, match="float32, float16 or bfloat16"):
        layer(torch.zeros(2, 4, *[8] * dims, dtype=torch.int8))
    with pytest.raises(ValueError, match="groups=5"):
        type(layer)(4, 6, 3, groups=5)
    with pytest.raises(RuntimeError, match="for inference"):
        layer(torch.randn(2, 4, *[8] * dims, requires_grad=True)).sum().backward()


def test_a_kernel_longer_than_the_video_is_refused() -> None:
    layer = QuantConv3d.from_float(nn.Conv3d(4, 6, 3))
    with pytest.raises(RuntimeError, match="spans 3 frames"):
        layer(torch.randn(1, 4, 2, 5, 5))


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_layers_are_captured_by_export_with_their_bits_at_any_size(number: int) -> None:
    torch.manual_seed(0)
    kind, config, sides = EXAMPLES[number]
    _, layer = made(kind, {"in_channels": 8, "out_channels": 12, **config}, {})
    axes = [0, *range(2, 2 + len(sides))]
    free = (dict.fromkeys(axes, torch.export.Dim.AUTO),)
    x = torch.randn(2, 8, *sides)
    program = torch.export.export(layer, (x,), strict=False, dynamic_shapes=free)
    other = torch.randn(3, 8, sides[0], *(side + 3 for side in sides[1:]))
    assert torch.equal(program.module()(other), layer(other))


def test_phases_and_packing_match_the_operator_of_linear_layers() -> None:
    """A transposed convolution of one pixel by a kernel of its stride is a linear layer."""
    torch.manual_seed(0)
    conv = nn.ConvTranspose2d(8, 3, 2, 2, bias=False)
    layer = QuantConvTranspose2d.from_float(conv)
    x = torch.randn(4, 8, 1, 1)
    codes, scale = ops.quantize_dynamic(x.flatten(1))[:2]
    total = codes.int() @ layer.int8_weight.int().flatten(1)
    expected = total.view(4, 3, 2, 2) * (scale.view(-1, 1, 1, 1) * layer.weight_scale.view(1, -1, 1, 1))  # fmt: skip
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(
    ("conv", "products"),
    [
        (nn.Conv1d(8000, 1, 9, device="meta"), 72000),
        (nn.Conv3d(2500, 1, 3, device="meta"), 67500),
        (nn.ConvTranspose2d(17000, 1, 4, 2, device="meta"), 68000),
        (nn.ConvTranspose1d(70000, 2, 2, 2, device="meta"), 70000),
    ],
    ids=lambda v: type(v).__name__,
)
def test_sums_of_too_many_products_stay_float_with_a_reason(conv: Any, products: int) -> None:
    kind = PAIRS[type(conv)]
    with pytest.raises(ValueError, match=f"sums of {products} products"):
        kind.from_float(conv)
