"""Layers with a forward or weights of their own, made ordinary: the function must not change."""

import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

from qkernels.nn import QuantLinear
from qkernels.plain import PlainForm, SamePaddedConv2d, plain_form


def plain(module: nn.Module) -> nn.Module:
    form = plain_form(module)
    assert form is not None and form.module is not None, form
    return form.module


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


class StandardConv(nn.Conv2d):
    """Weight standardization (Qiao et al. 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        w = w / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class SameConv(nn.Conv2d):
    """SAME padding by the size of the input, written as in many code bases."""

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for size, k, s, d in zip(x.shape[-2:], self.kernel_size, self.stride, self.dilation, strict=True):  # fmt: skip
            total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
            pads = [total // 2, total - total // 2, *pads]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)  # fmt: skip


class Lora(nn.Linear):
    def __init__(self, *args: Any, rank: int = 2, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.down = nn.Parameter(torch.randn(rank, self.in_features))
        self.up = nn.Parameter(torch.randn(self.out_features, rank))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.5 * self.dropout(x) @ self.down.T @ self.up.T


class CastingLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.to(input.dtype), self.bias)


class Transposed(nn.Module):
    def __init__(self, inside: int, outside: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inside, outside))
        self.bias = nn.Parameter(torch.randn(outside)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


class ScaledLinear(nn.Module):
    """Equalized learning rate (Karras et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(7, 6))
        self.offset = nn.Parameter(torch.randn(7))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.matrix * 0.3, self.offset * 2)


CONVS = st.fixed_dictionaries(
    {
        "kernel_size": st.sampled_from([1, 2, 3, (3, 2), 5]),
        "stride": st.sampled_from([1, 2, (1, 3), 4]),
        "dilation": st.sampled_from([1, 2]),
        "groups": st.sampled_from([1, 2]),
        "bias": st.booleans(),
    }
)


@settings(max_examples=25, deadline=None)
@given(CONVS, st.integers(0, 2), st.integers(9, 20), st.integers(9, 20), st.integers(0, 99))
def test_a_standardized_weight_is_the_weight_of_an_ordinary_convolution(
    config: dict[str, Any], padding: int, h: int, w: int, seed: int
) -> None:
    torch.manual_seed(seed)
    conv, x = StandardConv(4, 6, padding=padding, **config), torch.randn(2, 4, h, w)
    new = plain(conv)
    assert type(new) is nn.Conv2d and new.padding == conv.padding
    close(new(x), conv(x))


@settings(max_examples=25, deadline=None)
@given(CONVS, st.integers(9, 20), st.integers(9, 20), st.integers(0, 99))
def test_same_padding_holds_at_sizes_that_were_not_probed(
    config: dict[str, Any], h: int, w: int, seed: int
) -> None:
    torch.manual_seed(seed)
    conv, x = SameConv(4, 6, **config), torch.randn(2, 4, h, w)
    new = plain(conv)
    close(new(x), conv(x))
    layer = new.conv if isinstance(new, SamePaddedConv2d) else new
    assert isinstance(layer, nn.Conv2d) and layer.weight is conv.weight


def test_same_padding_of_a_stride_is_told_from_symmetric_padding() -> None:
    form = plain_form(SameConv(3, 4, 3, 2))
    assert form is not None and isinstance(form.module, SamePaddedConv2d)
    assert form.sentence == "SameConv's own forward as SAME padding and an ordinary Conv2d"


@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
def test_a_padding_mode_of_the_base_class_is_kept(mode: Any) -> None:
    class Mine(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    conv, x = Mine(3, 4, 3, padding=1, padding_mode=mode), torch.randn(2, 3, 9, 8)
    new = plain(conv)
    assert isinstance(new, nn.Conv2d) and new.padding_mode == mode and new.weight is conv.weight
    assert torch.equal(new(x), conv(x))


def test_a_convolution_that_overrides_only_what_its_forward_calls_is_seen() -> None:
    class Mine(nn.Conv2d):
        def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return super()._conv_forward(x, weight * 2, bias)

    conv, x = Mine(3, 4, 3), torch.randn(2, 3, 9, 8)
    close(plain(conv)(x), conv(x))


def test_geometry_that_the_forward_sets_itself_is_found() -> None:
    class Mine(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight, self.bias, stride=2, padding=1)

    conv, x = Mine(3, 4, 3), torch.randn(2, 3, 9, 8)
    new = plain(conv)
    assert isinstance(new, nn.Conv2d) and new.stride == (2, 2)
    assert torch.equal(new(x), conv(x))


def test_a_low_rank_update_inside_a_linear_becomes_one_matrix() -> None:
    torch.manual_seed(0)
    layer, x = Lora(6, 7).eval(), torch.randn(5, 6)
    new = plain(layer)
    assert type(new) is nn.Linear and torch.equal(new.bias, layer.bias)
    close(new(x), layer(x))


def test_a_forward_that_is_linear_after_all_shares_the_parameters() -> None:
    layer = CastingLinear(6, 7)
    new = plain(layer)
    assert type(new) is nn.Linear and new.weight is layer.weight and new.bias is layer.bias


@pytest.mark.parametrize("dims", [2, 3, 4])
def test_a_forward_that_takes_one_number_of_axes_only_is_found(dims: int) -> None:
    class Picky(Lora):
        def forward(self, x: Tensor) -> Tensor:
            if x.dim() != dims:
                raise ValueError(f"{dims} axes, please")
            return super().forward(x)

    layer, x = Picky(6, 7).eval(), torch.randn(*[5] * (dims - 1), 6)
    close(plain(layer)(x), layer(x))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sides", [(6, 7), (6, 6), (1, 4)])
def test_a_transposed_weight_keeps_its_bits(sides: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = Transposed(*sides, bias), torch.randn(2, 5, sides[0])
    new = plain(layer)
    assert type(new) is nn.Linear and torch.equal(new.weight, layer.weight.T)
    assert new.bias is layer.bias
    close(new(x), layer(x))


def test_a_module_that_scales_its_matrix_becomes_a_linear() -> None:
    layer, x = ScaledLinear(), torch.randn(5, 6)
    close(plain(layer)(x), layer(x))


def test_gpt2s_layer_is_found_without_its_name() -> None:
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    layer, x = pytorch_utils.Conv1D(7, 6), torch.randn(2, 3, 6)
    new = plain(layer)
    assert torch.equal(new.weight, layer.weight.T) and new.bias is layer.bias
    close(new(x), layer(x))


def recomputed() -> list[tuple[str, nn.Module]]:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: list[tuple[str, nn.Module]] = [
            ("weight norm, old", nn.utils.weight_norm(nn.Conv2d(3, 4, 3))),
            ("weight norm of Conv1d, old", nn.utils.weight_norm(nn.Conv1d(3, 4, 3, padding=1))),
            (
                "weight norm of ConvTranspose1d",
                nn.utils.weight_norm(nn.ConvTranspose1d(3, 4, 4, 2, 1, 1)),
            ),
            ("spectral norm, old", nn.utils.spectral_norm(nn.Linear(3, 4))),
        ]
    made += [
        ("weight norm", parametrizations.weight_norm(nn.Linear(3, 4))),
        (
            "weight norm of ConvTranspose2d",
            parametrizations.weight_norm(nn.ConvTranspose2d(4, 6, 3, 2, groups=2)),
        ),
        ("weight norm of Conv3d", parametrizations.weight_norm(nn.Conv3d(3, 4, 3))),
        ("spectral norm", parametrizations.spectral_norm(nn.Conv2d(3, 4, 3))),
        ("orthogonal", parametrizations.orthogonal(nn.Linear(3, 3))),
        ("pruned", prune.random_unstructured(nn.Conv2d(3, 4, 3), "weight", 0.5)),
        (
            "pruned bias",
            prune.random_unstructured(
                prune.l1_unstructured(nn.Linear(3, 4), "weight", 0.5), "bias", 0.5
            ),
        ),
    ]
    return made


def example(module: nn.Module) -> Tensor:
    if isinstance(module, nn.Linear):
        return torch.randn(5, module.in_features)
    dims = {"1": (12,), "2": (12, 11), "3": (6, 7, 8)}[type(module).__name__[-2]]
    return torch.randn(2, module.in_channels, *dims)  # type: ignore[arg-type]


@pytest.mark.parametrize("ran", [True, False])
@pytest.mark.parametrize("number", range(len(recomputed())))
def test_a_recomputed_weight_becomes_a_parameter(number: int, ran: bool) -> None:
    name, module = recomputed()[number]
    x = example(module)
    if ran:
        module(x)
    module.eval()
    form = plain_form(module)
    assert form is not None and form.module is not None, (name, form)
    new = form.module
    assert isinstance(new._parameters["weight"], nn.Parameter)
    assert not parametrize.is_parametrized(new)
    assert len(form.spent_hooks) == len(module._forward_pre_hooks)
    close(new(x), module(x))


def test_a_users_hook_that_recomputes_the_weight_is_spent_and_one_that_scales_x_is_not() -> None:
    layer, x = nn.Linear(6, 7), torch.randn(5, 6)
    raw = layer.weight
    del layer.weight
    layer.raw = nn.Parameter(raw.detach())
    layer.weight = layer.raw * 0.5
    recompute = layer.register_forward_pre_hook(lambda m, _: setattr(m, "weight", m.raw * 2))
    scale = layer.register_forward_pre_hook(lambda m, args: (args[0] * 3,))
    form = plain_form(layer)
    assert form is not None and form.module is not None
    assert form.spent_hooks == {recompute.id} != {scale.id}
    close(form.module(x * 3), layer(x))


def test_probing_leaves_the_module_as_it_was() -> None:
    class Counting(nn.Linear):
        calls = 0

        def __init__(self) -> None:
            super().__init__(6, 7)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.seen += 1
            self.last = x
            return super().forward(x) + 0 * torch.rand(())

    layer = Counting().train()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    new = plain(layer)
    assert layer.calls == 0 and layer.seen == 0 and not hasattr(layer, "last")
    assert layer.training and new.training
    assert torch.equal(torch.rand(3), expected)


class Clamped(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.clamp(-50, 50))


class Gated(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class Noisy(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.randn_like(x))


class WithTask(nn.Linear):
    def forward(self, x: Tensor, task: int = 0) -> Tensor:  # type: ignore[override]
        return super().forward(x) * (task + 1)


class Pair(nn.Linear):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


class Fails(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("no plan")


class TwoConvs(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + super().forward(x.relu())


class Coordinates(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.arange(x.shape[-1]))


class ByChannels(nn.Linear):
    """Multiplies the second axis of three."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2) if x.dim() == 3 else super().forward(x)  # fmt: skip


REFUSED = [
    (Clamped(6, 6), "no ordinary layer gives the same answers"),
    (Gated(6, 6), "no ordinary layer gives the same answers"),
    (Noisy(6, 6), "another answer at each call"),
    (WithTask(6, 6), "more than one argument"),
    (Pair(6, 6), "returns a tuple"),
    (Fails(6, 6), "KeyError: 'no plan'"),
    (TwoConvs(3, 4, 3), "no ordinary layer gives the same answers"),
    (Coordinates(3, 4, 3), "no ordinary layer gives the same answers"),
    (ByChannels(6, 6), "no ordinary layer gives the same answers"),
    (CastingLinear(6, 6, device="meta"), "meta device"),
    (CastingLinear(6, 0), "empty"),
]


@pytest.mark.parametrize(("module", "reason"), REFUSED, ids=lambda v: type(v).__name__)
def test_what_is_no_ordinary_layer_stays_with_a_reason(module: nn.Module, reason: str) -> None:
    form = plain_form(module)
    assert form is not None and form.module is None
    assert reason in form.sentence
    assert form.sentence.startswith(type(module).__name__)


class Positions(nn.Module):
    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(length, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table[: x.shape[-2]]


class Router(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight).softmax(-1)


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(6, 7),
        nn.Conv2d(3, 4, 3),
        nn.Embedding(6, 7),
        nn.LayerNorm([6, 7]),
        nn.ReLU(),
        Positions(6, 6),
        Positions(3, 6),
        Router(),
        QuantLinear(6, 7),
        type("Mine", (nn.Linear,), {})(6, 7),
    ],
    ids=lambda m: type(m).__name__,
)
def test_what_is_ordinary_or_something_else_is_left_without_a_word(module: nn.Module) -> None:
    assert plain_form(module) is None


def test_a_forward_patched_into_the_instance_is_left_alone() -> None:
    layer = CastingLinear(6, 7)
    layer.forward = lambda x: x  # type: ignore[method-assign, assignment]
    assert plain_form(layer) is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_weights_of_another_float_type_keep_it(dtype: torch.dtype) -> None:
    for layer in (Lora(6, 7).to(dtype), StandardConv(3, 4, 3).to(dtype)):
        assert next(plain(layer).parameters()).dtype == dtype


def timm_layers() -> list[tuple[nn.Module, type[nn.Module]]]:
    timm = pytest.importorskip("timm.layers")
    return [
        (timm.Conv2dSame(3, 4, 3, 2), SamePaddedConv2d),
        (timm.StdConv2d(3, 4, 3, 2), nn.Conv2d),
        (timm.StdConv2dSame(3, 4, 3, 2), SamePaddedConv2d),
        (timm.ScaledStdConv2d(3, 4, 3, 2), nn.Conv2d),
        (timm.ScaledStdConv2dSame(3, 4, 3, 2), SamePaddedConv2d),
        (timm.Linear(6, 7), nn.Linear),
    ]


def test_timms_layers_are_found_without_their_names() -> None:
    for module, kind in timm_layers():
        new = plain(module.eval())
        x = torch.randn(5, 6) if kind is nn.Linear else torch.randn(2, 3, 17, 14)
        assert type(new) is kind
        close(new(x), module(x))


def test_an_empty_same_padded_convolution_takes_the_state_on_meta_too() -> None:
    new: Any = plain(SameConv(4, 6, (3, 2), 2, groups=2))
    with torch.device("meta"):
        empty = SamePaddedConv2d.from_scheme(new.scheme())
    assert empty.weight.is_meta
    empty.load_state_dict(new.state_dict(), assign=True)
    x = torch.randn(4, 9, 8)
    assert torch.equal(empty(x), new(x)) and empty.bias is not None


def test_a_padded_convolution_inside_is_refused() -> None:
    with pytest.raises(ValueError, match="padding=\\(1, 1\\)"):
        SamePaddedConv2d(nn.Conv2d(3, 4, 3, padding=1))


def test_a_user_registers_a_plain_form_of_his_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from qkernels.plain import registry

    monkeypatch.setattr(registry, "_MAKERS", dict(registry._MAKERS))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cube = nn.Parameter(torch.randn(2, 4, 6))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.cube.flatten(0, 1).T

    def make(block: Block) -> PlainForm:
        layer = nn.Linear(6, 8, bias=False)
        layer.weight = nn.Parameter(block.cube.detach().flatten(0, 1))
        return PlainForm(layer, "Block as a linear layer")

    assert plain_form(Block()) is None
    registry.register(Block, make)
    block, x = type("Child", (Block,), {})(), torch.randn(5, 6)
    close(plain(block)(x), block(x))
